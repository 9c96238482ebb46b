"""Tests of atomic writes: whatever happens during a write, a reader finds the complete old file or the complete new
file.
"""

import signal
import subprocess
import sys
import threading

import pytest
from killing import hidden_names, run_until_rename

from higgs_audio.files import (
    remove_leftovers,
    replacing,
    replacing_path,
    temporary_folder,
    temporary_path,
    write_atomic,
)

OLD, NEW = b"old content", b"new content" * 1000


def run_writer(path, body):
    """Runs Python code in a new process, where `path` is the path of the file to write; returns the finished
    process."""
    code = f"""
import os, signal, resource
from pathlib import Path
from higgs_audio.files import replacing, write_atomic
path = Path({str(path)!r})
{body}
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def interrupt_file(path):
    """Starts to replace a file, and is interrupted before the end."""
    with replacing(path) as file:
        file.write(NEW[:5000])
        raise KeyboardInterrupt


def interrupt_path(path):
    with replacing_path(path) as temporary:
        temporary.write_bytes(NEW[:5000])
        raise KeyboardInterrupt


def interrupt_folder(parent, name):
    with temporary_folder(parent, name) as temporary:
        (temporary / "config.json").write_text("{")
        raise KeyboardInterrupt


def test_the_content_is_written_under_the_name_and_nothing_else_remains(tmp_path):
    write_atomic(tmp_path / "bytes", NEW)
    write_atomic(tmp_path / "text", "Grüße\n")
    with replacing(tmp_path / "file") as file:
        file.write(NEW)
        assert not (tmp_path / "file").exists()
    with replacing_path(tmp_path / "path") as temporary:
        temporary.write_bytes(NEW)
        assert temporary.parent == tmp_path
        assert not (tmp_path / "path").exists()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "bytes": NEW,
        "text": "Grüße\n".encode(),
        "file": NEW,
        "path": NEW,
    }


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (OLD, NEW, b""):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interrupt", [interrupt_file, interrupt_path])
@pytest.mark.parametrize("before", [None, OLD])
def test_an_interrupt_keeps_the_existing_file_and_leaves_no_temporary_file(tmp_path, before, interrupt):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(KeyboardInterrupt):
        interrupt(path)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_full_disk_keeps_the_existing_file_and_leaves_no_temporary_file(tmp_path):
    """A limit of 4 kB on the size of files simulates the full disk: the write fails after its first bytes."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    failed = run_writer(path, f"{limit}\nwrite_atomic(path, bytes(100_000))")
    assert failed.returncode == 1
    assert "OSError: [Errno 27] File too large" in failed.stderr
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_keeps_the_existing_file_and_its_temporary_file_can_be_removed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OLD)
    body = "with replacing(path) as file:\n file.write(b'half')\n os.kill(os.getpid(), signal.SIGKILL)"
    assert run_writer(path, body).returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    (leftover,) = (entry for entry in tmp_path.iterdir() if entry != path)
    assert leftover.name.startswith(".file.")
    remove_leftovers(tmp_path, "other")
    assert leftover.exists()
    remove_leftovers(tmp_path, "file")
    assert list(tmp_path.iterdir()) == [path]


def test_leftover_folders_are_removed_and_temporary_files_of_running_processes_are_kept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = temporary_path(tmp_path, "model [1]")
    mine.write_bytes(NEW)
    *start, process_id, token, end = mine.name.split(".")
    assert int(process_id)
    leftover = tmp_path / ".".join([*start, str(ended.pid), token, end])
    leftover.mkdir()
    (leftover / "config.json").write_text("{}")
    remove_leftovers(tmp_path, "model [1]")
    assert list(tmp_path.iterdir()) == [mine]


def test_leftovers_of_other_machines_are_kept_unless_there_is_a_single_writer(tmp_path):
    foreign = tmp_path / ".file.elsewhere.1.0a1b2c3d.part"
    foreign.write_bytes(NEW)
    (tmp_path / "file.part").write_bytes(OLD)
    remove_leftovers(tmp_path, "file")
    assert foreign.exists()
    remove_leftovers(tmp_path, "other", single_writer=True)
    assert foreign.exists()
    remove_leftovers(tmp_path, "file", single_writer=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]


def test_a_temporary_folder_is_renamed_or_deleted(tmp_path):
    with temporary_folder(tmp_path, "model") as temporary:
        (temporary / "config.json").write_text("{}")
        temporary.rename(tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "config.json"]
    with pytest.raises(KeyboardInterrupt):
        interrupt_folder(tmp_path, "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_killed_process_leaves_one_temporary_folder_and_the_next_removes_it(tmp_path):
    code = """
from pathlib import Path
from higgs_audio.files import temporary_folder
with temporary_folder(Path(sys.argv[1]), "model") as temporary:
    (temporary / "config.json").write_text("{}")
    os.replace(temporary, Path(sys.argv[1], "model"))
"""
    run_until_rename(code, tmp_path)
    (leftover,) = hidden_names(tmp_path)
    assert leftover.startswith(".model.")
    with temporary_folder(tmp_path, "model") as temporary:
        assert hidden_names(tmp_path) == [temporary.name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["folder", "missing/file", "file/file", "", "x" * 300])
def test_a_path_that_cannot_be_written_raises_and_leaves_no_temporary_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(OSError, match=r"\[Errno \d+\]"):
        write_atomic(tmp_path / name, NEW)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert list(tmp_path.parent.glob(".*.part")) == []


def test_a_block_that_creates_no_file_raises_and_keeps_the_existing_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with pytest.raises(FileNotFoundError), replacing_path(path):
        pass
    assert path.read_bytes() == OLD


def test_long_names_of_many_bytes_are_written(tmp_path):
    path = tmp_path / ("音" * 80)  # 240 of the 255 bytes that a name may have
    write_atomic(path, NEW)
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_other_new_files(tmp_path):
    (tmp_path / "plain").write_bytes(NEW)
    write_atomic(tmp_path / "atomic", NEW)
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_readers_and_writers_at_the_same_time_see_only_complete_files(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(4)]
    write_atomic(path, contents[0])

    def write_often(content):
        for _ in range(20):
            write_atomic(path, content)

    writers = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
