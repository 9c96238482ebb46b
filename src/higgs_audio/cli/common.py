"""Options, loading and messages that the commands share."""

import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from higgs_audio.errors import OptionError, nearest

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer
    from higgs_audio.speech.tts import HiggsAudio

EXIT_CODE = 2  # for every error of this package
stderr = Console(stderr=True)

Model = Annotated[str, typer.Option(help="nano, a checkpoint folder, or a Hugging Face Hub repository.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0 ...; by default a GPU if there is one.")]


def check_output(path: Path, formats: Collection[str] | None = None) -> None:
    """Raises OptionError, before any work begins, if `path` cannot be written or has no known extension.

    Args:
        path: the output file.
        formats: known extensions; None for the extensions of audio files.
    """
    if formats is None:
        from higgs_audio.audio import FORMATS

        formats = FORMATS
    if path.is_dir():
        raise OptionError(f"-o {str(path)!r} is a folder; give a file")
    if not path.parent.is_dir():
        raise OptionError(f"-o {str(path)!r}: its folder does not exist; create it first")
    check_folder(path.parent)
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise OptionError(f"-o {str(path)!r} does not end in a known format; {nearest(suffix, formats)}")


def make_folder(folder: Path) -> None:
    """Creates a folder for output files.

    Raises:
        OptionError: it cannot be created, or no file can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OptionError(f"-o {str(folder)!r:.200} cannot be created: {error}; give another folder") from error
    check_folder(folder)


def check_folder(folder: Path) -> None:
    """Raises OptionError if no file can be created in an existing folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OptionError(f"-o: no file can be written in {str(folder)!r}: {reason}; give another folder") from error


def load_model(
    model: str,
    device: str | None,
    codec_device: str | None = None,
    weights: str | None = None,
    offload_text: bool = False,
) -> "HiggsAudio":
    """Loads a checkpoint; see `HiggsAudio.from_pretrained`."""
    silence_libraries()
    _limit_threads()
    from higgs_audio.speech.tts import HiggsAudio

    return HiggsAudio.from_pretrained(
        model, device, codec_device=codec_device, weights=weights, offload_text=offload_text
    )


def load_audio_tokenizer(model: str, device: str | None) -> "HiggsAudioTokenizer":
    """Loads the audio tokenizer of a checkpoint."""
    silence_libraries()
    _limit_threads()
    from higgs_audio.codec import HiggsAudioTokenizer
    from higgs_audio.device import resolve_device

    return HiggsAudioTokenizer.from_pretrained(model, device_map=resolve_device(device))


def _limit_threads() -> None:
    """Limits torch's threads to the CPU time that the container has."""
    import torch

    from higgs_audio.native import num_threads

    torch.set_num_threads(num_threads())


def silence_libraries() -> None:
    """Disables transformers' progress bars and load reports, and the warnings of torchao.

    If torchao is installed, transformers imports it, and torchao warns about kernels for other machines.
    """
    import logging

    from transformers.utils import logging as transformers_logging

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def report(line: str) -> None:
    """Prints a line to stderr."""
    print(line, file=sys.stderr)
