"""Tests that saving is atomic: a folder is unchanged until all new files are written, whatever happens before."""

import json
import os
import platform
import stat
from pathlib import Path

import pytest
import torch
from full_disk import file_size_limit
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
    """Returns kind of object -> a function that saves such an object in a folder."""
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint)
    return {
        "model": HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).save_pretrained,
        "codec": codec.save_pretrained,
        "processor": HiggsAudioProcessor.from_pretrained(tiny_checkpoint).save_pretrained,
        "layout": lambda folder: layout.write(HiggsAudioTokenizer, codec.config, codec.state_dict(), folder),
        "convert": lambda folder: convert(tiny_checkpoint, folder, "native"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Returns relative path -> content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_leaves_no_other_file_and_all_users_can_read_it(kind, save, tmp_path):
    """safetensors creates files that only their owner may read, which a server that runs as another user could not
    load."""
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


@pytest.mark.parametrize("name", ["a.json", "model.safetensors"])
def test_config_json_is_moved_last(name, tmp_path):
    """A folder without config.json is not a checkpoint, so that an incomplete folder cannot be loaded. Here the move of
    one file fails, because a folder has its name; config.json must be moved after it."""
    (tmp_path / "x" / name).mkdir(parents=True)

    def save():
        with atomic_folder(tmp_path / "x") as part:
            for file in ("a.json", "config.json", "model.safetensors"):
                (part / file).write_text(file)

    with pytest.raises(CheckpointError, match="cannot be written"):
        save()
    assert not (tmp_path / "x" / "config.json").exists()
    (tmp_path / "x" / name).rmdir()
    save()
    assert (tmp_path / "x" / "config.json").exists()


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


@pytest.mark.parametrize("num_bytes", [16, 20_000], ids=["no file fits", "small files fit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_raises_a_checkpoint_error_and_changes_nothing(kind, num_bytes, save, tmp_path):
    """Python files raise OSError, safetensors its own error, and tokenizers a bare `Exception`, which was not caught
    earlier."""
    if kind != "convert":
        save[kind](tmp_path / "x")
    before = contents(tmp_path)
    with (
        file_size_limit(num_bytes),
        pytest.raises(CheckpointError, match=r"cannot be written.*File too large") as error,
    ):
        save[kind](tmp_path / "x")
    assert isinstance(error.value.__cause__, OSError | SafetensorError)
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
    """Tests may run as root, who may write everywhere, so a replaced function raises the system's error."""
    save[kind](tmp_path / "x")
    before = contents(tmp_path)

    def fail(old, new):
        raise PermissionError(13, "Permission denied", str(new))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save[kind](tmp_path / "x")
    assert contents(tmp_path) == before


def test_a_folder_with_a_read_only_parent_gets_its_temporary_folder_inside(tmp_path, monkeypatch):
    """For example, a volume mounted into a container. Root may write everywhere, so the result of the system call is
    replaced."""
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
