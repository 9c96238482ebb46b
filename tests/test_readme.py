"""Tests of the README: its first block has two lines, its code runs, and its links are valid."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from higgs_audio import NANO

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
# These take minutes, or would run this file; .ci/run runs them.
NOT_HERE = re.compile(r"(pip install|pytest)\b")


def blocks(kind: str) -> list[str]:
    return [body for language, body in BLOCKS if language == kind]


def test_the_first_block_is_two_lines_one_generates_speech_and_one_runs_the_tests():
    language, body = BLOCKS[0]
    speak, test = body.splitlines()
    assert language == "console"
    assert re.fullmatch(r'pip install \. && higgs-audio speak ".+" -o \w+\.wav', speak)
    assert test.startswith("pip install -e '.[dev]' && ")
    assert test.endswith(" && pytest -q")


def test_the_first_python_example_has_about_ten_lines():
    assert 8 <= len(blocks("python")[0].splitlines()) <= 10


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def console_blocks():
    """Each command is a process that takes seconds to start, so a block of several is slow."""
    for block in blocks("console"):
        is_slow = len(re.findall(r"\bhiggs-audio ", block)) > 1
        yield pytest.param(block, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("block", list(console_blocks()))
def test_console_blocks_run(block, tmp_path):
    """Runs all lines of a block in one folder, without the parts that install or test."""
    parts = [part for line in block.splitlines() for part in line.split(" && ") if not NOT_HERE.match(part)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for part in parts:
        result = subprocess.run(
            part, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        for output in re.findall(r"-o (\S+)", part):
            assert (tmp_path / output).stat().st_size > 200


def test_links_lead_to_files_of_the_repository():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_every_path_in_the_table_of_contents_exists():
    for row in re.findall(r"^\| [\w ,]+ \| (`.+?`) \|", README, flags=re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row):
            assert (ROOT / name).exists() or (NANO.parent / name).exists(), name
