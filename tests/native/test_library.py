"""Tests that the C library is compiled once and cached, and that torch runs if it cannot be used."""

import ctypes
import os
import re
import shutil
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engines import make_engine, many_requests, run_alone
from killing import hidden_names, run_until_rename
from oracle import fill, make_config

from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.native import library, num_threads
from higgs_audio.native.structs import STRUCTS

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler is here")


@pytest.fixture
def cache_folder(monkeypatch, tmp_path):
    """Returns an empty cache folder; the library is loaded again in this test and in the next."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.load_library.cache_clear()
    yield tmp_path / "cache" / "higgs-audio"
    library.load_library.cache_clear()


@pytest.fixture
def sources(tmp_path):
    """Returns a copy of the C files that a test may modify."""
    return Path(shutil.copytree(library.FOLDER, tmp_path / "sources"))


def generate(request):
    """Runs an engine on a small model; returns whether it runs in C, and whether the columns equal those of the plain
    loop."""
    model = fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()
    engine = make_engine(model)
    handle = engine.submit(request)
    return engine.runner.native is not None, (list(handle), handle.finish_reason) == run_alone(model, request)


def test_torch_runs_if_the_compiler_fails(monkeypatch, cache_folder):
    monkeypatch.setenv("CC", "false")
    with pytest.warns(UserWarning, match=r"C files cannot be compiled"):
        assert library.native_library() is None
    assert generate(many_requests()[0]) == (False, True)
    assert not list(cache_folder.rglob("*.so"))


@pytest.mark.usefixtures("cache_folder")
def test_without_a_compiler_torch_runs_and_says_so_once(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"no C compiler \(cc, gcc or clang\).*install one"):
        assert library.native_library() is None
    assert generate(many_requests()[0]) == (False, True)


@needs_compiler
@pytest.mark.usefixtures("cache_folder")
def test_without_a_home_folder_torch_runs(monkeypatch):
    """For example, in a container whose user is not in the list of users."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # "~" is not expanded, as for a user that the system does not know
    with pytest.warns(UserWarning, match="home directory"):
        assert library.native_library() is None


@needs_compiler
def test_the_library_is_compiled_once(cache_folder):
    assert isinstance(library.native_library(), ctypes.CDLL)
    (compiled,) = cache_folder.rglob("*.so")
    time = compiled.stat().st_mtime_ns
    library.load_library.cache_clear()
    assert library.native_library() is not None
    assert compiled.stat().st_mtime_ns == time


LOAD = """
from higgs_audio.native import library
library.native_library()
"""


@needs_compiler
def test_a_killed_compilation_leaves_no_library_and_the_next_one_removes_its_temporary_file(cache_folder):
    run_until_rename(LOAD)
    (leftover,) = hidden_names(cache_folder)
    assert leftover.startswith(".native-") and list(cache_folder.glob("*.so")) == []
    assert library.native_library() is not None
    (compiled,) = cache_folder.iterdir()
    assert compiled == library.library_path(os.environ.get("CC", Path(COMPILER).name))


@needs_compiler
def test_threads_that_compile_at_the_same_time_all_load_the_library(cache_folder):
    with ThreadPoolExecutor(3) as pool:
        libraries = list(pool.map(lambda _: library.native_library(), range(3)))
    assert all(isinstance(loaded, ctypes.CDLL) for loaded in libraries)
    (compiled,) = cache_folder.iterdir()
    assert compiled.suffix == ".so"


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.parametrize("name", sorted(file.name for file in library.FOLDER.glob("*.[ch]")))
def test_the_cached_file_has_another_name_for_every_version_of_the_sources(sources, name):
    before = library.library_path("cc", sources)
    assert library.library_path("cc", sources) == before == library.library_path("cc")
    with (sources / name).open("a") as file:
        file.write("/* another version */\n")
    assert library.library_path("cc", sources) != before


@needs_compiler
def test_the_library_of_another_version_is_not_loaded(cache_folder, sources):
    """The cached file of the old version is not a library, so loading it would warn."""
    old = library.library_path(os.environ.get("CC", COMPILER), sources)
    old.parent.mkdir(parents=True)
    old.write_text("not a library")
    with (sources / "export.h").open("a") as file:
        file.write("/* another version */\n")
    assert library.load_library(sources) is not None
    assert len(list(cache_folder.rglob("*.so"))) == 2


@needs_compiler
@pytest.mark.usefixtures("cache_folder")
def test_structures_have_the_sizes_of_their_mirrors():
    assert library.size_mismatches(library.native_library()) == []
    declared = [line for file in library.FOLDER.glob("*.c") for line in file.read_text().splitlines()]
    exported = {line.partition("(")[2].rstrip(")") for line in declared if line.startswith("EXPORT_SIZEOF(")}
    assert exported == set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_structures_have_the_fields_of_their_mirrors_in_the_same_order(name):
    files = [file.read_text(encoding="utf-8") for file in library.FOLDER.glob("*.[ch]")]
    text = re.sub(r"/\*.*?\*/", "", "\n".join(files), flags=re.DOTALL)
    (body,) = re.findall(rf"typedef struct {{([^{{}}]*)}} {name};", text)
    declared = [re.sub(r"^\s*(const\s+)?\w+", "", line) for line in body.split(";")]  # without their types
    names = [word for line in declared for word in re.findall(r"\w+", line) if word != "const"]
    assert names == [field[0] for field in STRUCTS[name]._fields_]


@needs_compiler
@pytest.mark.usefixtures("cache_folder")
def test_torch_runs_with_one_warning_if_a_structure_has_another_size(monkeypatch):
    class Longer(ctypes.Structure):
        _fields_ = [*STRUCTS["sampler"]._fields_, ("another", ctypes.c_int64)]

    monkeypatch.setitem(STRUCTS, "sampler", Longer)
    size = ctypes.sizeof(Longer)
    with pytest.warns(UserWarning, match=rf"sampler has {size - 8} bytes in C and {size} in Python"):
        assert library.native_library() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(many_requests()[0]) == (False, True)


@needs_compiler
def test_all_exported_symbols_have_the_prefix(cache_folder):
    assert library.native_library() is not None
    (compiled,) = cache_folder.rglob("*.so")
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm is here")
    lines = subprocess.run([nm, "-D", "--defined-only", str(compiled)], check=True, capture_output=True, text=True)
    names = {line.split()[-1] for line in lines.stdout.splitlines()}
    assert names >= set(library.FUNCTIONS)
    assert {name for name in names if not name.startswith(("higgs_", "_"))} == set()


@pytest.fixture
def six_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("six_threads")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "6400000 100000\n"}, 6),
        ({"cpu.max": "nonsense\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
    ids=str,
)
def test_the_number_of_threads_respects_the_quota_of_a_container(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert num_threads(tmp_path) == expected
