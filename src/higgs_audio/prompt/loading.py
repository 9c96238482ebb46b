"""The parts of a processor as a checkpoint holds them: its folder, its text tokenizer, its audio tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerFast

from higgs_audio import checkpoint
from higgs_audio.device import read_device
from higgs_audio.errors import CheckpointError, InputError, first_line
from higgs_audio.prompt.config import CODEC_FOLDER

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

TOKENIZER_FILE = "tokenizer.json"


def find_folder(name_or_path: str | Path, **where: Any) -> Path:
    """The folder of a processor, which needs no model: of a repository no weights but those of the audio tokenizer are
    downloaded.

    Args:
        name_or_path: as in `checkpoint.resolve`.
        **where: those of `checkpoint.FOLDER_OPTIONS`.

    Raises:
        CheckpointError: no such checkpoint, or one without a text tokenizer.
    """
    return checkpoint.resolve(name_or_path, patterns=checkpoint.DOWNLOADED, needs=TOKENIZER_FILE, **where)


def load_tokenizer(name_or_path: str | Path, **options: Any) -> PreTrainedTokenizerFast:
    """The fast text tokenizer of a checkpoint.

    Args:
        name_or_path: as in `find_folder`.
        **options: those of `checkpoint.FOLDER_OPTIONS`, and those of transformers' own `from_pretrained`.

    Raises:
        CheckpointError: no such checkpoint, or none of its files is a tokenizer.
    """
    folder = find_folder(
        name_or_path, **{name: options.pop(name) for name in checkpoint.FOLDER_OPTIONS if name in options}
    )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, **options)
    except Exception as error:  # the tokenizers library raises a bare Exception for a file that is not of its form
        raise CheckpointError(
            f"{folder} has no tokenizer that loads: {first_line(error)}; fetch its files again"
        ) from error


def choose_codec(given: Any, folder: Path, name: str, device_map: Any, hub: Mapping[str, Any]) -> Any:
    """The audio tokenizer of a processor: the one that a caller gives, from the folder or repository that they name,
    or the one called `name` in the checkpoint at `folder`, as `find_codec` finds it.

    Raises:
        CheckpointError: it does not load. OptionError: no such device.
    """
    if given is None:
        return find_codec(folder, name, device_map, **hub)
    if isinstance(given, (str, Path)):
        return load_codec(given, device_map, **hub)
    if device_map is not None and isinstance(given, nn.Module):
        return given.to(read_device(_only(device_map), "device_map"))
    return given


def _only(device_map: Any) -> Any:
    """The device under which a dict has everything."""
    return device_map.get("") if isinstance(device_map, dict) and len(device_map) == 1 else device_map


def find_codec(
    folder: Path, name: str, device_map: Any = None, **hub: Any
) -> "HiggsAudioTokenizer | Callable[[], Any] | None":
    """The audio tokenizer called `name` in a checkpoint: a folder inside it is loaded, a path or repository of its own
    is put off until it is needed. None where the checkpoint has no such folder, as those of training runs."""
    if (folder / name).is_dir():
        return load_codec(folder / name, device_map)
    if name == CODEC_FOLDER:
        return None
    # A revision is that of the checkpoint's own repository.
    elsewhere = {option: value for option, value in hub.items() if option != "revision"}
    return lambda: load_codec(name, device_map, **elsewhere)


def load_codec(name_or_path: str | Path, device_map: Any = None, **hub: Any) -> "HiggsAudioTokenizer":
    """An audio tokenizer in a folder or repository of its own, in eval mode.

    Args:
        name_or_path: as in `HiggsAudioTokenizer.from_pretrained`.
        device_map: its device; the CPU when None.
        **hub: those of `checkpoint.HUB_OPTIONS`.

    Raises:
        CheckpointError: it does not load. OptionError: no such device.
    """
    from higgs_audio.codec import HiggsAudioTokenizer

    try:
        codec = HiggsAudioTokenizer.from_pretrained(name_or_path, device_map=device_map, **hub)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the audio tokenizer {str(name_or_path)!r} does not load: {first_line(error)} Pass "
            "audio_tokenizer= with one that is loaded, or its folder"
        ) from error
    return codec.eval()
