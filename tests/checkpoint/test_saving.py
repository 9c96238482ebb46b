"""Saving is atomic: a folder is unchanged until all new files are written, whatever happens before."""

import json
import os
import platform
import stat
from pathlib import Path

import pytest
import torch
from killing import run_until_rename
from safetensors import SafetensorError

from higgs_audio import HiggsAudioForConditionalGeneration, HiggsAudioProcessor, HiggsAudioTokenizer
from higgs_audio.checkpoint.saving import atomic_folder
from higgs_audio.codec import layout
from higgs_audio.convert import convert
from higgs_audio.errors import CheckpointError

KINDS = ("model", "codec", "processor", "layout", "convert")


@pytest.fixture(scope="module")
def save(tiny_checkpoint):
    """Kind of object -> a function that saves one in a folder."""
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint)
    return {
        "model": HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).save_pretrained,
        "codec": codec.save_pretrained,
        "processor": HiggsAudioProcessor.from_pretrained(tiny_checkpoint).save_pretrained,
        "layout": lambda folder: layout.write(HiggsAudioTokenizer, codec.config, codec.state_dict(), folder),
        "convert": lambda folder: convert(tiny_checkpoint, folder, "native"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_leaves_no_other_file_and_all_users_can_read_it(kind, save, tmp_path):
    """safetensors creates files that only their owner may read, which a server of another user could not load."""
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
def test_other_files_of_the_folder_and_its_subfolders_are_kept(kind, save, tmp_path):
    (tmp_path / "x" / "codec").mkdir(parents=True)
    (tmp_path / "x" / "notes.txt").write_text("mine")
    (tmp_path / "x" / "codec" / "notes.txt").write_text("mine too")
    for _ in range(2):  # the second save finds the files of the first
        save[kind](tmp_path / "x")
    held = contents(tmp_path / "x")
    assert (held["notes.txt"], held["codec/notes.txt"]) == (b"mine", b"mine too")
    assert set(held) - {"notes.txt", "codec/notes.txt"}


def test_old_weights_are_removed_from_every_folder_that_gets_new_ones(tmp_path):
    old = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*old, *(f"codec/{name}" for name in old), *(f"other/{name}" for name in old)):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("old")
    with atomic_folder(tmp_path / "x") as part:
        (part / "codec").mkdir()
        (part / "codec" / "model.safetensors").write_text("new")
    assert set(contents(tmp_path / "x")) == {*old, "codec/model.safetensors", *(f"other/{name}" for name in old)}


def test_config_json_is_moved_last(tmp_path, monkeypatch):
    """A folder without config.json is no checkpoint, so that an incomplete one cannot be loaded."""
    (tmp_path / "x").mkdir()
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (moved.append(Path(new).name), replace(old, new)))
    with atomic_folder(tmp_path / "x") as part:
        for name in ("a.json", "config.json", "model.safetensors"):
            (part / name).write_text(name)
    assert moved[-1] == "config.json"
    assert set(moved) == {"a.json", "config.json", "model.safetensors"}


# Failures.

SAVE = """
from higgs_audio import HiggsAudioProcessor, HiggsAudioTokenizer
kind = {"codec": HiggsAudioTokenizer, "processor": HiggsAudioProcessor}[sys.argv[1]]
kind.from_pretrained(sys.argv[2]).save_pretrained(sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["codec", "processor"])
def test_a_killed_save_changes_nothing_and_the_next_one_removes_its_files(kind, save, tiny_checkpoint, tmp_path):
    save[kind](tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text("old")
    before = contents(tmp_path / "x")
    run_until_rename(SAVE, kind, tiny_checkpoint, tmp_path / "x")
    assert contents(tmp_path / "x") == before
    assert len(list(tmp_path.iterdir())) == 2  # the folder, and the files of the killed process
    save[kind](tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_of_running_processes_and_of_other_machines_are_kept(tmp_path):
    with atomic_folder(tmp_path / "x") as mine, atomic_folder(tmp_path / "x") as other:
        foreign = tmp_path / mine.name.replace(platform.node()[:30], "elsewhere").replace(str(os.getpid()), "1")
        foreign.mkdir()
        assert len({mine, other, foreign}) == 3
        (other / "a.txt").write_text("a")
        with atomic_folder(tmp_path / "x"):
            pass
        assert mine.is_dir() and other.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"x", foreign.name}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_raises_a_checkpoint_error_and_changes_nothing(kind, error, save, tmp_path, monkeypatch):
    def full(*_, **__):
        raise error

    if kind != "convert":
        save[kind](tmp_path / "x")
    before = contents(tmp_path)
    for module in ("transformers.modeling_utils.safe_", "higgs_audio.codec.layout.", "higgs_audio.checkpoint.weights."):
        monkeypatch.setattr(f"{module}save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*(?i:no space)"):
        save[kind](tmp_path / "x")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_unusable_path_raises_a_checkpoint_error(kind, save, tmp_path):
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
def test_a_folder_without_write_permission_raises_a_checkpoint_error(kind, save, tmp_path, monkeypatch):
    """Tests may run as root, who may write everywhere, so that the system's error is simulated."""
    save[kind](tmp_path / "x")
    before = contents(tmp_path)

    def refuse(old, new):
        raise PermissionError(13, "Permission denied", str(new))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save[kind](tmp_path / "x")
    assert contents(tmp_path) == before


def test_a_folder_with_a_read_only_parent_gets_its_temporary_folder_inside(tmp_path, monkeypatch):
    """Such as a volume mounted into a container."""
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with atomic_folder(tmp_path / "x") as part:
        assert part.parent == tmp_path / "x"
        (part / "a.txt").write_text("a")
    assert contents(tmp_path) == {"x/a.txt": b"a"}


def test_the_working_directory_can_be_saved_into(save, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save["processor"](".")
    assert {"tokenizer.json", "processor_config.json", "codec"} <= {path.name for path in Path.cwd().iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_saved_model_and_processor_make_a_complete_checkpoint(save, tiny_checkpoint, tmp_path):
    for kind in ("model", "processor"):
        save[kind](tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["model_type"] == "higgs_audio"
    one = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x").state_dict()
    other = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
