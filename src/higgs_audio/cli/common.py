"""What the commands share: options, loading, messages."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from higgs_audio.errors import OptionError, nearest

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer
    from higgs_audio.speech.tts import HiggsAudio

FAILED = 2
stderr = Console(stderr=True)

Model = Annotated[str, typer.Option(help="nano, the folder of a checkpoint, or a hub repository.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0 ...; a GPU if there is one when left out.")]


def check_output(path: Path, formats: Collection[str]) -> None:
    """Complains about a path before the work, not after it."""
    if path.is_dir():
        raise OptionError(f"-o {str(path)!r} is a folder; give a file")
    if not path.parent.is_dir():
        raise OptionError(f"-o {str(path)!r}: its folder does not exist; make it first")
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise OptionError(f"-o {str(path)!r} does not end in a known format; {nearest(suffix, formats)}")


def load_model(model: str, device: str | None, **options: Any) -> "HiggsAudio":
    quiet()
    _spare_threads()
    from higgs_audio.speech.tts import HiggsAudio

    return HiggsAudio.from_pretrained(model, device=device, **options)


def load_audio_tokenizer(model: str, device: str | None) -> "HiggsAudioTokenizer":
    quiet()
    _spare_threads()
    from higgs_audio.speech.tts import load_codec

    return load_codec(model, device)


def _spare_threads() -> None:
    """No more of them than a container's time is enough for."""
    import torch

    from higgs_audio.native import num_threads

    torch.set_num_threads(num_threads())


def quiet() -> None:
    """transformers shows a progress bar and a report for each file; torchao, which it imports where it is installed,
    reports kernels for other machines.
    """
    import logging

    from transformers.utils import logging as transformers_logging

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def report(line: str) -> None:
    print(line, file=sys.stderr)
