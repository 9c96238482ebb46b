"""Tests of the synthetic speech of nano's training."""

import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes" / "nano"


@pytest.fixture
def speech(monkeypatch):
    """Imports the recipe that synthesizes the recordings."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield pytest.importorskip("speech")
    sys.modules.pop("speech", None)


def test_no_training_speaker_is_an_unseen_speaker(speech, tmp_path):
    (tmp_path / "heldout.txt").write_text("One is held out.\n", encoding="utf-8")
    lines = "\n".join(f"Sentence {n}." for n in range(4000))
    (tmp_path / "train.txt").write_text(lines + "\n", encoding="utf-8")
    jobs = list(speech.jobs(tmp_path))
    speakers = {split: {job["speaker"] for job in jobs if job["split"] == split} for split in ("train", "unseen")}
    assert not speakers["train"] & speakers["unseen"]
    assert len(speakers["train"]) > 80
    assert sum(voice.share for voice in speech.VOICES.values()) == pytest.approx(1.0)
    assert jobs == list(speech.jobs(tmp_path))
