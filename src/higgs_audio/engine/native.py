"""A decode step as one call of compiled C (`native.c`), for models in float32 on a CPU.

It is compiled once, by the C compiler that is there, and kept in the user's cache; without a compiler, or for a model
that it does not know, torch does the step. Weights that bfloat16 holds exactly, as those of a checkpoint saved in it,
are read as bfloat16: half of the bytes, the same numbers.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from higgs_audio.engine.kv_cache import KVCache
from higgs_audio.layers import RMSNorm
from higgs_audio.model import HiggsAudioForConditionalGeneration

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
LANES = 16  # floats of a vector in native.c; every width is a multiple
HALF_BYTES = 1 << 30  # of weights that are kept a second time, in bfloat16; larger models are read as they are
SWITCH = "HIGGS_AUDIO_NATIVE"  # environment variable; 0 leaves steps to torch


class _Matrix(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("out", ctypes.c_int64), ("in", ctypes.c_int64)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("before", "between")),
        *((name, _Matrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_layers", "width", "inner", "heads", "groups", "head_width")),
        ("is_half", ctypes.c_int64),
        ("layers", ctypes.POINTER(_Layer)),
        ("last", ctypes.c_void_p),
        ("head", _Matrix),
        ("eps", ctypes.c_float),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        ("state", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("of_layer", "of_value", "of_row", "of_group")),
    ]


class NativeStep:
    """Steps of one model.

    Args:
        model: one that `fits`.
        turns: of `runner.turning`, `[T, 2, 1, H]` float32.
        library: of `native_library`.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, turns: Tensor, library: ctypes.CDLL) -> None:
        self._library, self._turns, self._of = library, turns.contiguous(), model
        parts = list(_parts(model))
        self._seen = [_state(part) for part in parts]
        self._held: list[Tensor] = []  # what C points to
        matrices = [part.weight for part in parts if isinstance(part, nn.Linear)]
        self._is_half = _are_half(matrices)
        self._layers = (_Layer * len(model.model.layers))(*(self._layer(layer) for layer in model.model.layers))
        attention, norm = model.model.layers[0].self_attn, model.model.norm
        self._num_logits = model.audio_lm_head.out_features
        self._model = _Model(
            len(self._layers),
            model.model.text_config.hidden_size,
            model.model.layers[0].of_audio[2].gate_proj.out_features,
            attention.q_proj.out_features // attention.head_dim,
            attention.k_proj.out_features // attention.head_dim,
            attention.head_dim,
            self._is_half,
            self._layers,
            self._keep(norm.weight),
            self._matrix(model.audio_lm_head),
            norm.eps,
        )

    @property
    def is_current(self) -> bool:
        """Whether the model still has the weights that the steps read, unchanged."""
        return [_state(part) for part in _parts(self._of)] == self._seen

    def __call__(self, hidden: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Rows `[R, D]` at `positions [R]` to logits `[R, K (V + 2)]`; keys and values are kept in the cache's rows."""
        rows, state = hidden.clone(), cache.state
        threads, length = torch.get_num_threads(), state.shape[4]
        logits = hidden.new_empty(len(rows), self._num_logits)
        size = self._library.workspace(ctypes.byref(self._model), len(rows), threads, length)
        work = hidden.new_empty(size)
        layer, pair, row, group = state.stride()[:4]
        where = _Cache(state.data_ptr(), layer, pair, row, group)
        self._library.step(
            ctypes.byref(self._model),
            ctypes.byref(where),
            len(rows),
            *(ctypes.c_void_p(one.data_ptr()) for one in (positions, self._turns, rows, logits, work)),
            threads,
            length,
        )
        return logits

    def _layer(self, layer: Any) -> _Layer:
        before, between, *matrices = _layer_parts(layer)
        return _Layer(self._keep(before.weight), self._keep(between.weight), *map(self._matrix, matrices))

    def _matrix(self, linear: nn.Linear) -> _Matrix:
        weight = linear.weight.detach()
        kept = weight.to(torch.bfloat16).contiguous() if self._is_half else weight
        return _Matrix(self._keep(kept), linear.out_features, linear.in_features)

    def _keep(self, tensor: Tensor) -> int:
        self._held.append(tensor.detach())
        return tensor.data_ptr()


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
        warnings.warn(f"{SOURCE.name} cannot be compiled, so that torch takes the steps: {said}", stacklevel=2)
        return None
    library.workspace.restype, library.step.restype = ctypes.c_int64, None
    library.workspace.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 3)
    library.step.argtypes = (*[ctypes.c_void_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 2)
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


def native_step(model: HiggsAudioForConditionalGeneration, turns: Tensor) -> NativeStep | None:
    """Steps of the model in C; None where they cannot be."""
    if os.environ.get(SWITCH) == "0" or not fits(model):
        return None
    library = native_library()
    return None if library is None else NativeStep(model, turns, library)


def fits(model: HiggsAudioForConditionalGeneration) -> bool:
    """Whether `native.c` knows such a model: float32 on a CPU, no biases, widths that are multiples of 16, SiLU."""
    parts = list(_parts(model))
    linears = [part for part in parts if type(part) is nn.Linear]
    attention = model.model.layers[0].self_attn
    return (
        all(type(part) in (nn.Linear, RMSNorm) for part in parts)
        and all(part.weight.device.type == "cpu" and part.weight.dtype == torch.float32 for part in parts)
        and all(part.weight.is_contiguous() for part in parts)
        and all(part.bias is None and part.in_features % LANES == 0 for part in linears)
        and attention.head_dim % LANES == 0
        and all(isinstance(layer.of_audio[2].act, (nn.SiLU, SiLUActivation)) for layer in model.model.layers)
    )


def _parts(model: HiggsAudioForConditionalGeneration) -> Iterator[Any]:
    """What has the weights of a step."""
    for layer in model.model.layers:
        yield from _layer_parts(layer)
    yield from (model.model.norm, model.audio_lm_head)


def _layer_parts(layer: Any) -> tuple[Any, ...]:
    """In the order of `_Layer`."""
    attention, (before, between, feed) = layer.self_attn, layer.of_audio
    matrices = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return before, between, *matrices, feed.gate_proj, feed.up_proj, feed.down_proj


def _state(part: Any) -> tuple[int, int, int]:
    """What changes when a part is replaced or wrapped, and its weight moved, converted or written to."""
    return id(part), part.weight.data_ptr(), part.weight._version


def _are_half(matrices: list[Tensor]) -> bool:
    if sum(matrix.numel() * 2 for matrix in matrices) > HALF_BYTES:
        return False
    return all(bool((matrix == matrix.to(torch.bfloat16)).all()) for matrix in matrices)
