"""Tests of the structure of the package: imports between modules, their sizes, and the cost of `import higgs_audio`.
The levels are those of the table in docs/architecture.md.
"""

import ast
import importlib
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from levels import ARCHITECTURE, PACKAGE, ROOT, levels, top

import higgs_audio

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

MAX_LEVELS = 12
MAX_FILES = 20  # Python files in a folder
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 8

Graph = dict[str, set[str]]  # module -> modules of this package that it imports


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Returns dotted name below the package -> file; the `__init__` of a folder has the name of the folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """Returns the modules of this package that a file imports, anywhere in the file."""
    targets = set()
    for node in ast.walk(parse(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            below = name.removeprefix("higgs_audio.") if name.startswith("higgs_audio.") else ""
            targets |= {next((m for m in (below, below.rpartition(".")[0]) if m in known), "")} - {""}
    return targets


def import_graph() -> Graph:
    files = modules()
    return {module: imported(path, set(files)) for module, path in files.items()}


def between_folders(graph: Graph) -> Graph:
    """Returns folder or module outside folders -> folders or modules that it imports."""
    folders: Graph = {top(module): set() for module in graph}
    for module, targets in graph.items():
        folders[top(module)] |= {top(target) for target in targets} - {top(module)}
    return folders


def upward(graph: Graph, level: dict[str, int]) -> list[str]:
    """Returns the imports between folders that do not lead to a lower level."""
    return [
        f"{source} (level {level[top(source)]}) imports {target} (level {level[top(target)]})"
        for source, targets in sorted(graph.items())
        for target in sorted(targets)
        if top(source) != top(target) and level[top(target)] >= level[top(source)]
    ]


def cycles(graph: Graph) -> list[str]:
    """Returns the modules that are part of a cycle or import one; imports of the `__init__` of the same folder do not
    count."""
    left = {module: {target for target in targets if target != top(module)} for module, targets in graph.items()}
    while free := [module for module, targets in left.items() if not targets & set(left)]:
        for module in free:
            del left[module]
    return sorted(left)


def longest_chain(graph: Graph) -> list[str]:
    """Returns the longest sequence of names in which each imports the next; the graph has no cycle."""
    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            chains[name] = [name, *max(map(chain, sorted(graph[name])), key=len, default=[])]
        return chains[name]

    return max(map(chain, sorted(graph)), key=len, default=[])


# Imports.


def test_every_folder_and_module_has_a_level():
    assert set(levels()) == {top(module) for module in modules()}


def test_imports_lead_to_lower_levels():
    """This includes imports inside functions and behind TYPE_CHECKING."""
    assert upward(import_graph(), levels()) == []


def test_there_is_no_import_cycle_within_folders():
    assert cycles(import_graph()) == []


def test_upward_imports_and_cycles_are_detected():
    graph = {"audio.files": {"speech.tts"}, "audio.waveform": {"audio.files"}, "speech.tts": {"audio.waveform"}}
    assert len(upward(graph, {"audio": 1, "speech": 6})) == 1
    assert cycles(graph) == sorted(graph)
    assert cycles({"audio.files": {"audio.waveform"}, "audio.waveform": set()}) == []


def test_there_are_at_most_12_levels_and_no_longer_chain_of_folders():
    assert len(set(levels().values())) <= MAX_LEVELS
    chain = longest_chain(between_folders(import_graph()))
    assert len(chain) <= MAX_LEVELS, chain
    graph = {"cli": {"speech", "audio"}, "speech": {"audio"}, "audio": set()}
    assert longest_chain(graph) == ["cli", "speech", "audio"]


def test_private_names_are_not_imported_from_other_modules():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("higgs_audio"):
                assert [alias.name for alias in node.names if re.match(r"_[a-zA-Z]", alias.name)] == [], path


def test_the_command_line_imports_the_rest_of_the_package_inside_functions():
    """`higgs-audio --help` loads neither torch nor transformers."""
    for name in ("__init__", "main", "common", "speak", "codec", "checkpoints", "train"):
        body = parse(PACKAGE / "cli" / f"{name}.py").body
        found = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
        assert not [module for module in found if re.match(r"higgs_audio\.(?!cli|errors)", module)], name


# Sizes.


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function in a file, methods and nested functions included.

    Lines are counted from the first statement after the docstring to the last line of the body, with blank lines and
    comments between them. The signature, decorators and the docstring do not count; a function that consists of a
    docstring has 0.
    """
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_folder_is_deeper_than_one_level_or_has_more_than_20_files():
    assert [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 2] == []
    for root in (PACKAGE, ROOT / "tests"):
        sizes = Counter(path.parent.name for path in root.rglob("*.py"))
        assert {name: count for name, count in sizes.items() if count > MAX_FILES} == {}


def test_no_file_has_more_than_450_lines():
    files = [path for root in (PACKAGE, ROOT / "tests") for path in root.rglob("*.py")]
    sizes = {str(path.relative_to(ROOT)): num_lines(path) for path in files}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES} == {}


def test_functions_have_a_median_of_at_most_8_lines_and_at_most_60():
    sizes = [(path.name, *function) for path in PACKAGE.rglob("*.py") for function in functions(path)]
    assert statistics.median(lines for *_, lines in sizes) <= MAX_MEDIAN_LINES
    assert [size for size in sizes if size[-1] > MAX_FUNCTION_LINES] == []


def test_lines_of_a_function_are_counted_without_its_signature_and_docstring(tmp_path):
    code = 'def f(\n    x,\n):\n    """One\n    two."""\n    y = x\n\n    return y\n\n\ndef g():\n    """Nothing."""\n'
    (tmp_path / "x.py").write_text(code)
    assert list(functions(tmp_path / "x.py")) == [("f", 3), ("g", 0)]


# Public names.


def test_the_tree_in_the_documentation_lists_the_package():
    drawn = re.findall(r"^  ([\w.]+)(?:\.py|/) ", ARCHITECTURE, flags=re.MULTILINE)
    assert sorted(drawn) == sorted({top(module) for module in modules()} | {"__init__", "__main__", "nano"})


def test_public_names_are_those_that_the_documentation_lists():
    section = re.search(r"^## Public names\n(.*?)(?=^## |\Z)", ARCHITECTURE, flags=re.MULTILINE | re.DOTALL)
    assert section
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]+) \|", section[1], flags=re.MULTILINE)))
    assert sorted(listed) == sorted(higgs_audio.__all__)


def test_every_public_name_can_be_imported():
    for name in higgs_audio.__all__:
        assert getattr(higgs_audio, name) is not None
    assert set(higgs_audio.__all__) <= set(dir(higgs_audio))
    with pytest.raises(AttributeError, match="HiggsVideo"):
        _ = higgs_audio.HiggsVideo


def test_public_names_are_the_same_for_type_checkers():
    """`__init__` names them three times: for type checkers, for the import on first use, and in `__all__`."""
    typed = [node for node in parse(PACKAGE / "__init__.py").body if isinstance(node, ast.If)]
    names = [
        alias.name
        for block in typed
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted([*names, "__version__"]) == sorted(higgs_audio.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_the_documentation_imports_exist(page):
    """Both `from higgs_audio.x import y` and `higgs_audio.x.y`; a module with `__all__` lists the name there."""
    text = page.read_text(encoding="utf-8")
    statements = re.findall(r"from (higgs_audio[\w.]*) import ([\w, ]+)", text)
    found = {(module, name) for module, names in statements for name in names.split(", ")}
    found |= {tuple(name.rsplit(".", 1)) for name in re.findall(r"`(higgs_audio(?:\.\w+)+)", text)}
    for module, name in sorted(found):
        where = importlib.import_module(module)
        assert name in getattr(where, "__all__", dir(where)) or f"{module}.{name}" in sys.modules, f"{module}.{name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_the_tests_that_the_documentation_names_exist(page):
    named = re.findall(r"`(?:pytest -q )?(tests/[\w/]+\.py)", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


IMPORT = """
import sys, time
began = time.perf_counter()
import higgs_audio
seconds = time.perf_counter() - began
ours = {name.partition(".")[0] for name in sys.modules}
print(seconds, *sorted(ours - sys.stdlib_module_names))
"""


def test_importing_the_package_takes_at_most_a_tenth_of_a_second_and_no_dependency():
    """The fastest of three runs counts, because other processes may use the CPU."""
    times = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        seconds, *loaded = result.stdout.split()
        times.append(float(seconds))
    assert min(times) <= 0.1
    assert set(loaded) & {"torch", "transformers", "numpy", "soundfile", "rich", "typer", *optional_packages()} == set()


def test_optional_packages_are_imported_inside_functions():
    for path in PACKAGE.rglob("*.py"):
        for node in parse(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} & optional_packages() == set(), path


def optional_packages() -> set[str]:
    """Returns the import names of the packages that the extras install."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    assert table
    names = re.findall(r'"([\w-]+)(?:\[[\w,]+\])?[<>=]', table[1])
    assert {"faster-whisper", "peft"} <= set(names)
    return {name.replace("-", "_") for name in names} | {"distillmos", "resemblyzer"}
