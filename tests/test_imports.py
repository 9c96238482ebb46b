"""The house: who may import whom, as docs/architecture.md says, and what `import higgs_audio` costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import higgs_audio

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "higgs_audio"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

Edges = dict[str, set[str]]  # module -> modules of this package that it imports


def levels() -> dict[str, int]:
    """Module or folder -> level, from the table in docs/architecture.md."""
    rows = re.findall(r"^\| (\d) \| ([\w, ]+) \|", ARCHITECTURE, flags=re.MULTILINE)
    return {name: int(level) for level, names in rows for name in names.split(", ")}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a folder's `__init__` has the name of the folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def room(module: str) -> str:
    """The folder of a module, or the module itself where it lies in none."""
    return module.partition(".")[0]


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules of this package that a file imports, wherever the statement stands."""
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


def edges() -> Edges:
    files = modules()
    return {module: imported(path, set(files)) for module, path in files.items()}


def upward(graph: Edges, level: dict[str, int]) -> list[str]:
    """Imports between folders that do not lead to a lower level."""
    return [
        f"{source} (level {level[room(source)]}) imports {target} (level {level[room(target)]})"
        for source, targets in sorted(graph.items())
        for target in sorted(targets)
        if room(source) != room(target) and level[room(target)] >= level[room(source)]
    ]


def circles(graph: Edges) -> list[str]:
    """Modules that import themselves by way of others; a folder's `__init__` only hands on what lies in it."""
    inner = {module: {t for t in targets if t != room(module)} for module, targets in graph.items()}
    left = dict(inner)
    while free := [module for module, targets in left.items() if not targets & set(left)]:
        for module in free:
            del left[module]
    return sorted(left)


def test_every_folder_and_module_has_a_level():
    assert set(levels()) == {room(module) for module in modules()}


def test_imports_lead_to_lower_levels():
    """In functions and behind TYPE_CHECKING too."""
    assert upward(edges(), levels()) == []


def test_there_is_no_circle_inside_folders_either():
    assert circles(edges()) == []


def test_an_upward_import_and_a_circle_would_be_found():
    graph = {"audio.files": {"speech.tts"}, "audio.waveform": {"audio.files"}, "speech.tts": {"audio.waveform"}}
    assert len(upward(graph, {"audio": 1, "speech": 6})) == 1
    assert circles(graph) == sorted(graph)
    assert circles({"audio.files": {"audio.waveform"}, "audio.waveform": set()}) == []


def test_nobody_imports_another_module_s_private_names():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("higgs_audio"):
                assert [alias.name for alias in node.names if re.match(r"_[a-zA-Z]", alias.name)] == [], path


def test_the_command_imports_the_rest_inside_its_functions():
    """`higgs-audio --help` loads neither torch nor transformers."""
    for name in ("__init__", "main", "common", "speak", "codec", "checkpoints", "train"):
        body = parse(PACKAGE / "cli" / f"{name}.py").body
        found = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
        assert not [module for module in found if re.match(r"higgs_audio\.(?!cli|errors)", module)], name


def test_no_folder_is_deeper_than_one_level():
    assert [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 2] == []


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(r"^  ([\w.]+)(?:\.py|/) ", ARCHITECTURE, flags=re.MULTILINE)
    assert sorted(drawn) == sorted({room(module) for module in modules()} | {"__init__", "__main__", "nano"})


def test_public_names_are_listed_and_all_there():
    for name in higgs_audio.__all__:
        assert getattr(higgs_audio, name) is not None
    assert set(higgs_audio.__all__) <= set(dir(higgs_audio))
    with pytest.raises(AttributeError, match="HiggsVideo"):
        _ = higgs_audio.HiggsVideo


IMPORT = """
import sys, time
began = time.perf_counter()
import higgs_audio
seconds = time.perf_counter() - began
ours = {name.partition(".")[0] for name in sys.modules}
print(seconds, *sorted(ours - sys.stdlib_module_names))
"""


def test_importing_the_package_takes_no_time_and_no_dependency():
    """A tenth of a second is the promise; site-packages may preload things of their own."""
    took = []
    for _ in range(3):  # the least of three: another process may have the processor
        result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        seconds, *loaded = result.stdout.split()
        took.append(float(seconds))
    assert min(took) < 0.1
    assert set(loaded) & {"torch", "transformers", "numpy", "soundfile", "rich", "typer", *optional_packages()} == set()


def test_optional_packages_are_imported_where_they_are_used():
    for path in PACKAGE.rglob("*.py"):
        for node in parse(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} & optional_packages() == set(), path


def optional_packages() -> set[str]:
    """Import names of everything that an extra brings."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    assert table
    names = re.findall(r'"([\w-]+)(?:\[[\w,]+\])?[<>=]', table[1])
    assert {"faster-whisper", "peft"} <= set(names)
    return {name.replace("-", "_") for name in names} | {"distillmos", "resemblyzer"}
