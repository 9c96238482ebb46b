"""`native.c`, compiled once by the C compiler that is there, and kept in the user's cache."""

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

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64
FUNCTIONS = {  # what they return, what they take
    "panel": (COUNT,),
    "pack": (None, POINTER, COUNT, COUNT, COUNT, POINTER),
    "workspace": (COUNT, POINTER, COUNT, COUNT, COUNT),
    "forward": (None, *[POINTER] * 6, COUNT, COUNT),
}


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | None:
    """The compiled `native.c`; None, with a warning, where it cannot be compiled."""
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        warnings.warn(f"{SOURCE.name} cannot be compiled, so that torch does its work: {said}", stacklevel=2)
        return None
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _compiled(compiler: str) -> Path:
    """The library in the cache, whole or not there: compiled beside its place and then moved."""
    made_of = (SOURCE.read_bytes(), compiler.encode(), " ".join(FLAGS).encode(), _processor())
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
    command = [*compiler.split(), *flags, "-o", str(made), str(SOURCE), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return next(line for line in lines if line.startswith((b"flags", b"Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()
