"""Code files: safetensors with one tensor `codes [K, F]`; sample rate and hop length are metadata."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.errors import CodesError
from higgs_audio.files import write_atomic

KEY = "codes"


def save_codes(codes: Tensor, path: str | Path, config: HiggsAudioTokenizerConfig) -> None:
    """Writes codes `[K, F]` of a tokenizer with this config, atomically.

    Raises:
        CodesError: `codes` are not integers of two dimensions, or the file cannot be written.
    """
    if codes.ndim != 2 or codes.is_floating_point():
        raise CodesError(f"codes of shape {tuple(codes.shape)}, {codes.dtype}: expected integers [codebooks, frames]")
    content = save({KEY: codes.to(torch.int16).contiguous()}, metadata=_rates(config))
    try:
        write_atomic(Path(path), content)
    except OSError as error:
        raise CodesError(
            f"{str(path)!r} cannot be written: {error.strerror}; give a file name in an existing folder"
        ) from error


def load_codes(path: str | Path, config: HiggsAudioTokenizerConfig) -> Tensor:
    """Reads codes `[K, F]` as int64 from a file of `save_codes` or of another program.

    Raises:
        CodesError: the file does not exist, is not safetensors or has no tensor `codes`; its sample rate or hop length
            differs from `config`; or the codes are not integers `[K, F]` below the codebook size.
    """
    codes, metadata = _read(path)
    rates = _rates(config)
    if different := {name: value for name, value in metadata.items() if rates.get(name, value) != value}:
        raise CodesError(f"{path} has {different}, this audio tokenizer {rates}; use the one that encoded the file")
    if codes.ndim != 2 or codes.is_floating_point() or not 1 <= len(codes) <= config.num_codebooks or not codes.numel():
        raise CodesError(
            f"{path} contains {KEY!r} of shape {tuple(codes.shape)}, {codes.dtype}: expected integers "
            f"[1 to {config.num_codebooks} codebooks, frames]"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= config.codebook_size:
        raise CodesError(f"{path} has codes from {low} to {high}; allowed: 0 to {config.codebook_size - 1}")
    return codes.long()


def _rates(config: HiggsAudioTokenizerConfig) -> dict[str, str]:
    return {"sample_rate": str(config.sample_rate), "hop_length": str(config.hop_length)}


def _read(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """Returns the tensor and the metadata of a file."""
    if not Path(path).is_file():
        raise CodesError(f"{str(path)!r} is not a file; `higgs-audio encode` writes code files")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if KEY not in names:
                raise CodesError(f"{path} contains {', '.join(names) or 'nothing'}; expected a tensor {KEY!r}")
            return file.get_tensor(KEY), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CodesError(f"{path} is not a safetensors file: {error}. `higgs-audio encode` writes one") from error
