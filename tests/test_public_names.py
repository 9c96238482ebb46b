"""Tests of the public names of `audio`, `text`, `errors`, `files` and `device`: `__all__` has the documented names."""

import ast
import doctest
import pickle
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "higgs_audio"
FOLDERS = ("audio", "text")
MODULES = [
    *(f"{folder}.{path.stem}" for folder in FOLDERS for path in sorted((PACKAGE / folder).glob("[!_]*.py"))),
    *("errors", "files", "device"),
]
# Programs and pages that show imports to users.
DOCUMENTATION = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *(path for folder in ("docs", "examples", "recipes") for path in sorted((ROOT / folder).rglob("*.[mp][dy]"))),
]


def load(name):
    return import_module(f"higgs_audio.{name}")


def defined_names(name):
    """Returns the names that the statements of a module define, without imports."""
    tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_the_names_of_a_module_without_underscore(name):
    public = {defined for defined in defined_names(name) if not defined.startswith("_")}
    assert sorted(load(name).__all__) == sorted(public)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_and_classes_have_docstrings(name):
    module = load(name)
    values = {public: getattr(module, public) for public in module.__all__}
    assert [public for public, value in values.items() if callable(value) and not value.__doc__] == []


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    assert doctest.testmod(load(name)).failed == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_lists_the_names_that_the_docstring_of_a_folder_documents(folder):
    package = load(folder)
    documented = re.findall(r"^- (\w+): ", package.__doc__, flags=re.MULTILINE)
    assert sorted(documented) == sorted(package.__all__)
    assert [name for name in documented if not hasattr(package, name)] == []


def test_the_error_tree_in_the_documentation_is_the_real_one():
    errors = load("errors")
    drawn = re.findall(r"(\w+Error)\b(?: \((\w+)\))? ", errors.__doc__)
    classes = {name for name in errors.__all__ if name.endswith("Error")}
    assert {name for name, _ in drawn} | {"HiggsAudioError"} == classes
    for name, standard in drawn:
        assert not standard or standard in [base.__name__ for base in getattr(errors, name).__mro__], name


def test_errors_pass_between_processes():
    """`multiprocessing` pickles an error of a worker; an error that did not load again ended the whole pool."""
    errors = load("errors")
    plain = [
        getattr(errors, name)("no.") for name in errors.__all__ if name.endswith("Error") and "Missing" not in name
    ]
    missing = [
        errors.MissingExtraError("peft", "train"),
        load("listen.weights").MissingWeightsError("resemblyzer"),
        load("evaluate.requirements").MissingPackagesError(["jiwer"]),
    ]
    for error in (*plain, *missing):
        loaded = pickle.loads(pickle.dumps(error))
        assert (type(loaded), str(loaded)) == (type(error), str(error))


def test_the_documentation_imports_only_public_names():
    found = 0
    for path in DOCUMENTATION:
        text = path.read_text(encoding="utf-8")
        for name, imported in re.findall(r"^ *from higgs_audio\.([\w.]+) import ([\w, ]+)", text, flags=re.MULTILINE):
            if name in (*MODULES, *FOLDERS):
                found += 1
                assert {part.split(" as ")[0] for part in imported.split(", ")} <= set(load(name).__all__), path
        for folder, used in re.findall(r"\bhiggs_audio\.(audio|text)\.(\w+)\(", text):
            found += 1
            assert used in load(folder).__all__, path
    assert found > 5
