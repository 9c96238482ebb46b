"""The house: who may import whom, as docs/architecture.md says, and what `import higgs_audio` costs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import higgs_audio

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "higgs_audio"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

UPWARD = {("model", "generate")}  # model.generate() is what users of transformers expect
SAME_LEVEL = {
    ("hearing", "inputs"),
    ("model", "pretrained"),
    ("codec", "checkpoint"),
    ("script", "speaking"),
    ("desk", "speaking"),
    *(("recital", module) for module in ("desk", "script", "speaking")),
    *(("tts", module) for module in ("desk", "recital", "script", "speaking")),
}
FORBIDDEN = {
    "model": {"processor", "codec", "prompt", "template", "audio", "text"},
    "generate": {"processor", "codec", "prompt", "template", "audio", "text"},
    "codec": {"text", "model"},
}


def levels() -> dict[str, int]:
    """Module or folder -> level, from the table in docs/architecture.md."""
    rows = re.findall(r"^\| (\d) \| ([\w, ]+) \|", ARCHITECTURE, flags=re.MULTILINE)
    return {name: int(level) for level, names in rows for name in names.split(", ")}


def modules() -> dict[str, list[Path]]:
    """Module or folder -> its files."""
    files: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] not in ("__init__.py", "__main__.py"):
            files.setdefault(place.parts[0].removesuffix(".py"), []).append(path)
    return files


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules or folders of this package that a file imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "higgs_audio" and len(parts) > 1 and parts[1] in modules():
                yield parts[1]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def allowed(source: str, target: str) -> bool:
    """The rule of the table."""
    level = levels()
    if target in FORBIDDEN.get(source, ()):
        return False
    if source == target or (source, target) in UPWARD | SAME_LEVEL:
        return True
    return level[target] < level[source] or level[source] == level[target] == 0


def test_every_module_has_a_level_and_every_level_its_modules():
    assert set(levels()) == set(modules())


@pytest.mark.parametrize("source", sorted(modules()))
def test_a_module_imports_downward_only(source):
    targets = {target for path in modules()[source] for target in imports(parse(path))}
    assert [target for target in sorted(targets) if not allowed(source, target)] == []


def test_the_command_imports_the_rest_inside_its_functions():
    body = [node for node in parse(PACKAGE / "cli.py").body if not isinstance(node, (ast.FunctionDef, ast.If))]
    assert {target for node in body for target in imports(node)} == {"errors"}


def test_no_folder_is_deeper_than_one_level():
    assert [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 2] == []


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(r"^  ([\w.]+)(?:\.py|/) ", ARCHITECTURE, flags=re.MULTILINE)
    assert sorted(drawn) == sorted([*modules(), "__init__", "__main__", "nano"])


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
    """Half a second is the promise; site-packages may preload things of their own, so torch and ours are looked at."""
    took = []
    for _ in range(3):  # the least of three: another process may have the processor
        result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        seconds, *loaded = result.stdout.split()
        took.append(float(seconds))
    assert min(took) < 0.5
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
