"""Saving: a folder is what it was until everything new is written, whatever happens in between."""

import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from higgs_audio import HiggsAudioForConditionalGeneration, HiggsAudioProcessor, HiggsAudioTokenizer
from higgs_audio.checkpoint.saving import whole_folder
from higgs_audio.codec import layout
from higgs_audio.convert import convert
from higgs_audio.errors import CheckpointError

KINDS = ("model", "codec", "processor", "layout", "convert")


@pytest.fixture(scope="module")
def save(tiny_checkpoint):
    """Kind -> a function that saves one to a folder."""
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint)
    return {
        "model": HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).save_pretrained,
        "codec": codec.save_pretrained,
        "processor": HiggsAudioProcessor.from_pretrained(tiny_checkpoint).save_pretrained,
        "layout": lambda folder: layout.write(HiggsAudioTokenizer, codec.config, codec.state_dict(), folder),
        "convert": lambda folder: convert(tiny_checkpoint, folder, "native"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_appears_alone_and_can_be_read_by_others(kind, save, tmp_path):
    """safetensors gives its files to their owner alone, so that a server of another user could not load them."""
    before = os.umask(0o022)
    try:
        save[kind](tmp_path / "x")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()} == {0o755}


def test_a_stricter_umask_is_kept(save, tmp_path):
    before = os.umask(0o077)
    try:
        save["codec"](tmp_path / "x")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "x").iterdir()} == {0o600}


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_other_files_of_the_folder_stay_and_those_of_its_folders(kind, save, tmp_path):
    (tmp_path / "x" / "codec").mkdir(parents=True)
    (tmp_path / "x" / "notes.txt").write_text("mine")
    (tmp_path / "x" / "codec" / "notes.txt").write_text("mine too")
    for _ in range(2):  # a second save meets the files of the first
        save[kind](tmp_path / "x")
    held = contents(tmp_path / "x")
    assert (held["notes.txt"], held["codec/notes.txt"]) == (b"mine", b"mine too")
    assert set(held) - {"notes.txt", "codec/notes.txt"}


def test_weights_of_an_earlier_save_go_in_every_folder_that_gets_new_ones(tmp_path):
    old = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*old, *(f"codec/{name}" for name in old), *(f"other/{name}" for name in old)):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("old")
    with whole_folder(tmp_path / "x") as part:
        (part / "codec").mkdir()
        (part / "codec" / "model.safetensors").write_text("new")
    assert set(contents(tmp_path / "x")) == {*old, "codec/model.safetensors", *(f"other/{name}" for name in old)}


def test_config_json_comes_last(tmp_path, monkeypatch):
    """Without it a folder is no checkpoint: half of one cannot be taken for a whole."""
    (tmp_path / "x").mkdir()
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (moved.append(Path(new).name), replace(old, new)))
    with whole_folder(tmp_path / "x") as part:
        for name in ("a.json", "config.json", "model.safetensors"):
            (part / name).write_text(name)
    assert moved[-1] == "config.json"
    assert set(moved) == {"a.json", "config.json", "model.safetensors"}


# What goes wrong.

KILLED = """
import os, sys
from higgs_audio import HiggsAudioProcessor, HiggsAudioTokenizer
from higgs_audio.checkpoint import saving
saving._move_in = lambda part, folder: os._exit(9)  # all is written, nothing is moved
kind = {"codec": HiggsAudioTokenizer, "processor": HiggsAudioProcessor}[sys.argv[1]]
kind.from_pretrained(sys.argv[2]).save_pretrained(sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["codec", "processor"])
def test_a_save_that_is_killed_changes_nothing_and_the_next_one_clears_up(kind, save, tiny_checkpoint, tmp_path):
    save[kind](tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text("old")
    before = contents(tmp_path / "x")
    run = [sys.executable, "-W", "ignore", "-c", KILLED, kind, str(tiny_checkpoint), str(tmp_path / "x")]
    assert subprocess.run(run, env=os.environ, check=False, capture_output=True).returncode == 9
    assert contents(tmp_path / "x") == before
    assert len(list(tmp_path.iterdir())) == 2  # what the killed process had written
    save[kind](tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_living_process_or_another_machine_writes_is_left_alone(tmp_path):
    with whole_folder(tmp_path / "x") as mine, whole_folder(tmp_path / "x") as other:
        foreign = tmp_path / mine.name.replace(platform.node()[:30], "elsewhere").replace(str(os.getpid()), "1")
        foreign.mkdir()
        assert len({mine, other, foreign}) == 3
        (other / "a.txt").write_text("a")
        with whole_folder(tmp_path / "x"):
            pass
        assert mine.is_dir() and other.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"x", foreign.name}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_a_checkpoint_error_and_changes_nothing(kind, error, save, tmp_path, monkeypatch):
    def full(*_, **__):
        raise error

    if kind != "convert":
        save[kind](tmp_path / "x")
    before = contents(tmp_path)
    for name in ("transformers.modeling_utils.safe_save_file", "higgs_audio.codec.layout.save_file"):
        monkeypatch.setattr(name, full)
    monkeypatch.setattr("higgs_audio.convert.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*(?i:no space)"):
        save[kind](tmp_path / "x")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_written_is_a_checkpoint_error(kind, save, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save[kind](tmp_path / "file" / "x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save[kind](tmp_path / ("x" * 300))
    if kind != "convert":
        with pytest.raises(CheckpointError, match="is a file"):
            save[kind](tmp_path / "file")
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_folder_without_the_right_to_write_is_a_checkpoint_error(kind, save, tmp_path, monkeypatch):
    """Root, as which tests may run, has every right: the system's answer is given in its place."""
    save[kind](tmp_path / "x")
    before = contents(tmp_path)

    def refuse(old, new):
        raise PermissionError(13, "Permission denied", str(new))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save[kind](tmp_path / "x")
    assert contents(tmp_path) == before


def test_a_folder_whose_parent_may_not_be_written_is_written_from_inside(tmp_path, monkeypatch):
    """As a volume that is mounted into a container."""
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with whole_folder(tmp_path / "x") as part:
        assert part.parent == tmp_path / "x"
        (part / "a.txt").write_text("a")
    assert contents(tmp_path) == {"x/a.txt": b"a"}


def test_the_present_folder_can_be_saved_into(save, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save["processor"](".")
    assert {"tokenizer.json", "processor_config.json", "codec"} <= {path.name for path in Path.cwd().iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_saved_model_and_processor_make_a_whole_checkpoint(save, tiny_checkpoint, tmp_path):
    for kind in ("model", "processor"):
        save[kind](tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["model_type"] == "higgs_audio"
    one = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x").state_dict()
    other = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
