"""Files of codes: safetensors with one tensor `codes [K, F]` and the rates it was made at."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.errors import CodesError

KEY = "codes"


def save_codes(codes: Tensor, path: str | Path, config: HiggsAudioTokenizerConfig) -> None:
    """Writes codes `[K, F]` of the tokenizer with this config; the file appears when it is complete.

    Raises:
        CodesError: not integers of two dimensions, or a file that cannot be written.
    """
    if codes.ndim != 2 or codes.is_floating_point():
        raise CodesError(f"codes of shape {tuple(codes.shape)}, {codes.dtype}: expected integers [codebooks, frames]")
    path = Path(path)
    part = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        part.write_bytes(save({KEY: codes.to(torch.int16).contiguous()}, metadata=_rates(config)))
        os.replace(part, path)
    except OSError as error:
        raise CodesError(f"{str(path)!r} cannot be written: {error.strerror}; give a file in a folder") from error
    finally:
        part.unlink(missing_ok=True)


def load_codes(path: str | Path, config: HiggsAudioTokenizerConfig) -> Tensor:
    """Codes `[K, F]`, int64, of a file that `save_codes` or any other program wrote.

    Raises:
        CodesError: no such file, not safetensors, no tensor `codes` in it, codes of other rates than those of `config`,
            or not integers `[K, F]` within the codebooks' size.
    """
    codes, rates = _read(path)
    wanted = _rates(config)
    if other := {name: value for name, value in rates.items() if wanted.get(name, value) != value}:
        raise CodesError(f"{path} is of {other}; this audio tokenizer has {wanted}")
    if codes.ndim != 2 or codes.is_floating_point() or not 1 <= len(codes) <= config.num_codebooks or not codes.numel():
        raise CodesError(
            f"{path} holds {KEY!r} of shape {tuple(codes.shape)}, {codes.dtype}: expected integers "
            f"[1 to {config.num_codebooks} codebooks, frames]"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= config.codebook_size:
        raise CodesError(f"{path} has codes from {low} to {high}; allowed: 0 to {config.codebook_size - 1}")
    return codes.long()


def _rates(config: HiggsAudioTokenizerConfig) -> dict[str, str]:
    return {"sample_rate": str(config.sample_rate), "hop_length": str(config.hop_length)}


def _read(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    if not Path(path).is_file():
        raise CodesError(f"no file {str(path)!r}; `higgs-audio encode` writes one")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if KEY not in names:
                raise CodesError(f"{path} holds {', '.join(names) or 'nothing'}; expected a tensor {KEY!r}")
            return file.get_tensor(KEY), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CodesError(f"{path} is not a safetensors file: {error}") from error
