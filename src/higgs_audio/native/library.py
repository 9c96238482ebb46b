"""The C files of this folder, compiled once by the C compiler that is there, and kept in the user's cache."""

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

SOURCES = tuple(Path(__file__).with_name(name) for name in ("choice.c", "convnext.c", "layers.c", "matrix.c"))
HEADERS = tuple(Path(__file__).with_name(name) for name in ("matrix.h", "vectors.h"))
SWITCH = "HIGGS_AUDIO_NATIVE"  # environment variable; 0 leaves everything to torch
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64
FUNCTIONS = {  # what they return, what they take
    "panel": (COUNT,),
    "pack": (None, POINTER, COUNT, COUNT, COUNT, POINTER),
    "workspace": (COUNT, POINTER, COUNT, COUNT, COUNT),
    "forward": (None, *[POINTER] * 6, COUNT, COUNT),
    "choice_workspace": (COUNT, COUNT, COUNT, COUNT, COUNT),
    "next_columns": (None, *[POINTER] * 5, COUNT),
    "convnext_workspace": (COUNT, POINTER, COUNT),
    "convnext": (None, *[POINTER] * 3, COUNT, POINTER, POINTER, COUNT),
}


def native_library() -> ctypes.CDLL | None:
    """What was compiled; None where nothing can be, with a warning where that is unexpected."""
    return None if os.environ.get(SWITCH) == "0" else _loaded()


@lru_cache(maxsize=1)
def _loaded() -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        said = getattr(error, "stderr", None) or error
        warnings.warn(f"the C files cannot be compiled, so that torch does their work: {said}", stacklevel=3)
        return None
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _compiled(compiler: str) -> Path:
    """The library in the cache, whole or not there: compiled beside its place and then moved."""
    sources = [source.read_bytes() for source in (*SOURCES, *HEADERS)]
    made_of = (*sources, compiler.encode(), " ".join(FLAGS).encode(), _processor())
    name = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "higgs-audio"
    library = folder / f"native-{name}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".compiling-") as temporary:
            made = Path(temporary) / library.name
            try:
                _compile(compiler, (*FLAGS, "-fopenmp"), made)
            except subprocess.CalledProcessError:  # such as Apple's compiler, which has no OpenMP
                _compile(compiler, FLAGS, made)
            os.replace(made, library)
    return library


def _compile(compiler: str, flags: tuple[str, ...], made: Path) -> None:
    command = [*compiler.split(), *flags, "-o", str(made), *map(str, SOURCES), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return next(line for line in lines if line.startswith((b"flags", b"Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()
