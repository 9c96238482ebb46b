"""Compiles the C files of this folder once, with the system's C compiler, into the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from functools import lru_cache
from pathlib import Path

from higgs_audio.files import remove_leftovers, replacing_path
from higgs_audio.native.structs import STRUCTS

FOLDER = Path(__file__).parent  # contains the C files
NATIVE_ENV = "HIGGS_AUDIO_NATIVE"  # environment variable; 0 disables the C code
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fvisibility=hidden", "-shared", "-fPIC", "-pthread")
POINTER, INT64, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
FUNCTIONS = {  # name -> type of the result, types of the arguments
    "higgs_panel_size": (INT64,),
    "higgs_pack_matrix": (None, POINTER, INT64, INT64, INT64, POINTER),
    "higgs_forward_workspace": (INT64, POINTER, INT64, INT64),
    "higgs_forward": (None, *[POINTER] * 6, INT64, INT64),
    "higgs_sampler_workspace": (INT64, INT64, INT64, INT64),
    "higgs_sampler_next_columns": (None, *[POINTER] * 5, INT64),
    "higgs_convnext_workspace": (INT64, POINTER),
    "higgs_convnext": (None, *[POINTER] * 3, INT64, POINTER, POINTER, INT64),
    "higgs_linear_workspace": (INT64, INT64),
    "higgs_linear": (None, POINTER, INT64, *[POINTER] * 2, INT64, *[POINTER] * 2, INT64),
    "higgs_pulses": (None, *[POINTER] * 4, INT64, INT64, FLOAT, FLOAT, POINTER, INT64),
    "higgs_mix": (None, *[POINTER] * 4, INT64, INT64, FLOAT, POINTER, INT64),
    **{f"higgs_sizeof_{name}": (INT64,) for name in STRUCTS},
}


def native_library() -> ctypes.CDLL | None:
    """Returns the compiled library; None with `HIGGS_AUDIO_NATIVE=0`, or if it cannot be used (see `load_library`)."""
    return None if os.environ.get(NATIVE_ENV) == "0" else load_library()


@lru_cache(maxsize=1)
def load_library(folder: Path = FOLDER) -> ctypes.CDLL | None:
    """Loads the library, after compiling it if it is not in the cache; called once per process.

    Args:
        folder: folder of the C files.

    Returns:
        None, with one UserWarning, if there is no C compiler or it fails, if there is no folder for the cache, or if a
        C structure and its ctypes mirror differ in size.
    """
    compiler = find_compiler()
    if compiler is None:
        warnings.warn(
            f"there is no C compiler (cc, gcc or clang), so torch runs instead, several times slower: install one, or "
            f"set {NATIVE_ENV}=0 to leave it so",
            stacklevel=3,
        )
        return None
    try:
        library = ctypes.CDLL(str(_compile_cached(compiler, folder)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"the C files cannot be compiled, so torch runs instead, slower: {reason}", stacklevel=3)
        return None
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    different = size_mismatches(library)
    if different:
        warnings.warn(
            f"C structures differ in size from structs.py, so torch runs instead, slower: {'; '.join(different)}",
            stacklevel=3,
        )
        return None
    return library


def find_compiler() -> str | None:
    """Returns the command of the C compiler: the environment variable CC, or the first one that exists."""
    return os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def size_mismatches(library: ctypes.CDLL) -> list[str]:
    """Returns one line for each structure whose size in C differs from its ctypes mirror."""
    sizes = {name: (getattr(library, f"higgs_sizeof_{name}")(), ctypes.sizeof(kind)) for name, kind in STRUCTS.items()}
    return [f"{name} has {c} bytes in C and {ours} in Python" for name, (c, ours) in sizes.items() if c != ours]


def library_path(compiler: str, folder: Path = FOLDER) -> Path:
    """Returns the path of the library in the cache; its name is a hash of everything that it depends on."""
    contents = [part for file in _c_files(folder) for part in (file.name.encode(), file.read_bytes())]
    key = (*contents, compiler.encode(), " ".join(FLAGS).encode(), _processor())
    name = hashlib.sha256(b"\0".join(key)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "higgs-audio"
    return cache / f"native-{name}.so"


def _c_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.c"), *folder.glob("*.h")])


def _compile_cached(compiler: str, folder: Path) -> Path:
    """Compiles the library unless it is in the cache. The file is written atomically."""
    library, sources = library_path(compiler, folder), [str(file) for file in sorted(folder.glob("*.c"))]
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(library.parent, library.name)
        with replacing_path(library) as output:
            _compile(compiler, FLAGS, sources, output)
    return library


def _compile(compiler: str, flags: tuple[str, ...], sources: list[str], output: Path) -> None:
    command = [*compiler.split(), *flags, "-o", str(output), *sources, "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def _processor() -> bytes:
    """Returns a description of the processor, on which `-march=native` depends: machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return next(line for line in lines if line.startswith((b"flags", b"Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()
