"""The levels of the package: which folder or module may use which, from the table in docs/architecture.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "higgs_audio"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def levels() -> dict[str, int]:
    """Module or folder -> level."""
    rows = re.findall(r"^\| (\d+) \| ([\w, ]+) \|", ARCHITECTURE, flags=re.MULTILINE)
    return {name: int(level) for level, names in rows for name in names.split(", ")}


def top(module: str) -> str:
    """The folder of a module, or the module itself if it is in none."""
    return module.partition(".")[0]
