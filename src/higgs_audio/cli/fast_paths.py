"""Says which fast paths run on this machine, and why the others do not."""

import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

from higgs_audio.checkpoint import Checkpoint
from higgs_audio.checkpoint.layouts import MODEL_TYPES
from higgs_audio.checkpoint.weights import Weight, open_weights
from higgs_audio.engine.native_layers import MAX_BYTES
from higgs_audio.native import native_status, num_threads
from higgs_audio.native.threads import cpu_quota

CPU_FEATURES = {  # flag in /proc/cpuinfo -> name
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bfloat16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
    "sve": "SVE",
}
PACKAGES = {  # distribution -> what it is for
    "accelerate": "device maps",
    "torchao": "quantised weights",
    "bitsandbytes": "quantised weights",
    "peft": "adapters",
    "pyarrow": "Parquet manifests",
    "tensorboard": "training curves",
    "faster-whisper": "transcripts",
    "onnxruntime": "quality scores",
}
NATIVE_WEIGHTS = (".layers.", "audio_lm_head.")  # parts of the names of the weights that run in C


def fast_paths(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns name -> state of every fast path, for the checkpoint `info` describes."""
    status = native_status()
    return {
        "C code": status,
        "language model in C": _language_model(checkpoint, status),
        "CPU": _cpu(),
        "threads": _threads(),
        "GPU": _gpu(),
        "quantised weights": _quantised(checkpoint),
        "torch.compile": _compile(),
        "optional packages": ", ".join(_package(name, use) for name, use in PACKAGES.items()),
    }


def _language_model(checkpoint: Checkpoint, status: str) -> str:
    """Says whether C runs the layers of the checkpoint in float32 on a CPU."""
    if checkpoint.config.get("model_type") not in MODEL_TYPES:
        return "off: the checkpoint has no language model"
    if status.startswith("off"):
        return "off: the C code is off"
    if checkpoint.config.get("quantization_config"):
        return "off: the checkpoint is quantised; torch runs it"
    size = packed_bytes(open_weights(checkpoint))
    if size > MAX_BYTES:
        return f"off: its packed weights need {size / 1e9:.1f} GB, more than {MAX_BYTES / 1e9:.1f} GB; torch runs it"
    return f"on for float32 on a CPU; packed weights need {size / 1e6:.1f} MB"


def packed_bytes(weights: Mapping[str, Weight]) -> int:
    """Returns the bytes that the packed weights need; half as many if they are stored in bfloat16."""
    native = [weight for name, weight in weights.items() if any(part in f".{name}" for part in NATIVE_WEIGHTS)]
    return sum(weight.numel * (2 if weight.get_dtype() == "BF16" else 4) for weight in native)


def _cpu() -> str:
    """Names the vector extensions of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()}; its vector extensions are not known"
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    found = [name for flag, name in CPU_FEATURES.items() if flag in line.split()]
    return f"{platform.machine()}; {', '.join(found) or 'no vector extensions that are used'}"


def _threads() -> str:
    quota, count = cpu_quota(), num_threads()
    limit = "" if quota is None else f"; the container may use {quota:g} cores"
    return f"{count} in C, {torch.get_num_threads()} in torch{limit}; OMP_NUM_THREADS changes both"


def _gpu() -> str:
    if torch.cuda.is_available():
        return f"on: {', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))}"
    if torch.backends.mps.is_available():
        return "on: Apple GPU (mps)"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"off: torch {torch.__version__} is a build without CUDA"
    return f"off: torch {torch.__version__} finds no GPU or no driver"


def _quantised(checkpoint: Checkpoint) -> str:
    config = checkpoint.config.get("quantization_config")
    if not config:
        return "off: the checkpoint has none; from_pretrained(weights=...) quantises while it loads"
    return f"on: {config.get('quant_method', config)}"


def _compile() -> str:
    """Says whether `torch.compile`, an option of training recipes, finds a compiler."""
    compiler = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if compiler is None:
        return "off: on a CPU it needs a C++ compiler, and there is none"
    return f"off in speech; `compile: true` in a training recipe turns it on ({compiler})"


def _package(name: str, use: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"no {name} ({use})"
