"""Compiles the C files of this folder once, with the C compiler of the machine. The user's cache keeps the library."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from higgs_audio.native.structs import STRUCTS

FOLDER = Path(__file__).parent  # of the C files
SWITCH = "HIGGS_AUDIO_NATIVE"  # environment variable; 0 leaves all work to torch
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fvisibility=hidden", "-shared", "-fPIC")
POINTER, INT64 = ctypes.c_void_p, ctypes.c_int64
FUNCTIONS = {  # type of the result, types of the arguments
    "higgs_panel_size": (INT64,),
    "higgs_pack_matrix": (None, POINTER, INT64, INT64, INT64, POINTER),
    "higgs_forward_workspace": (INT64, POINTER, INT64, INT64, INT64),
    "higgs_forward": (None, *[POINTER] * 6, INT64, INT64),
    "higgs_sampler_workspace": (INT64, INT64, INT64, INT64, INT64),
    "higgs_sampler_next_columns": (None, *[POINTER] * 5, INT64),
    "higgs_convnext_workspace": (INT64, POINTER, INT64),
    "higgs_convnext": (None, *[POINTER] * 3, INT64, POINTER, POINTER, INT64),
    **{f"higgs_sizeof_{name}": (INT64,) for name in STRUCTS},
}


def native_library() -> ctypes.CDLL | None:
    """The compiled library; None with `HIGGS_AUDIO_NATIVE=0`, or where it cannot be used (see `load_library`)."""
    return None if os.environ.get(SWITCH) == "0" else load_library()


@lru_cache(maxsize=1)
def load_library(folder: Path = FOLDER) -> ctypes.CDLL | None:
    """Loads the library, compiling it if the cache does not hold it; called once a process.

    Args:
        folder: of the C files.

    Returns:
        None without a C compiler. Also None, with one UserWarning, where the compiler fails, where there is no folder
        for the cache, or where a C structure and its ctypes mirror differ in size.
    """
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_compile_cached(compiler, folder)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"the C files cannot be compiled, torch does their work: {reason}", stacklevel=3)
        return None
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    different = size_mismatches(library)
    if different:
        warnings.warn(
            f"C structures differ in size from structs.py, torch does the work of the C files: {'; '.join(different)}",
            stacklevel=3,
        )
        return None
    return library


def size_mismatches(library: ctypes.CDLL) -> list[str]:
    """One line for each structure whose size in C is not that of its ctypes mirror."""
    sizes = {name: (getattr(library, f"higgs_sizeof_{name}")(), ctypes.sizeof(kind)) for name, kind in STRUCTS.items()}
    return [f"{name} has {c} bytes in C and {ours} in Python" for name, (c, ours) in sizes.items() if c != ours]


def library_path(compiler: str, folder: Path = FOLDER) -> Path:
    """Where the cache keeps the library of the C files in a folder: its name is a hash of everything it depends on."""
    contents = [part for file in _c_files(folder) for part in (file.name.encode(), file.read_bytes())]
    key = (*contents, compiler.encode(), " ".join(FLAGS).encode(), _processor())
    name = hashlib.sha256(b"\0".join(key)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "higgs-audio"
    return cache / f"native-{name}.so"


def _c_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.c"), *folder.glob("*.h")])


def _compile_cached(compiler: str, folder: Path) -> Path:
    """Compiles the library unless the cache has it. The file appears whole or not at all."""
    library, sources = library_path(compiler, folder), [str(file) for file in sorted(folder.glob("*.c"))]
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=".compiling-") as temporary:
            output = Path(temporary) / library.name
            try:
                _compile(compiler, (*FLAGS, "-fopenmp"), sources, output)
            except subprocess.CalledProcessError:  # such as Apple's compiler, which has no OpenMP
                _compile(compiler, FLAGS, sources, output)
            os.replace(output, library)
    return library


def _compile(compiler: str, flags: tuple[str, ...], sources: list[str], output: Path) -> None:
    command = [*compiler.split(), *flags, "-o", str(output), *sources, "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def _processor() -> bytes:
    """What `-march=native` depends on: several machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return next(line for line in lines if line.startswith((b"flags", b"Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()
