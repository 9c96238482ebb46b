"""Levels of the folders and modules of the package, from the table in docs/architecture.md: imports and calls lead
down.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "higgs_audio"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def levels() -> dict[str, int]:
    """Returns module or folder -> level."""
    rows = re.findall(r"^\| (\d+) \| ([\w, ]+) \|", ARCHITECTURE, flags=re.MULTILINE)
    return {name: int(level) for level, names in rows for name in names.split(", ")}


def top(module: str) -> str:
    """Returns the folder of a module, or the module itself if it is not in a folder."""
    return module.partition(".")[0]
