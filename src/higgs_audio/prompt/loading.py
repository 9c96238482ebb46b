"""Reads and writes the parts of a processor: its checkpoint folder, text tokenizer, config and audio tokenizer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from higgs_audio import checkpoint
from higgs_audio.checkpoint import CODEC_FOLDER, PROCESSOR_FILE, Checkpoint
from higgs_audio.checkpoint.names import TOKENIZER_FILE
from higgs_audio.checkpoint.tokenizer import read_tokenizer
from higgs_audio.errors import CheckpointError, InputError, first_line
from higgs_audio.prompt.config import ProcessorConfig

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

AudioTokenizerSource: TypeAlias = "HiggsAudioTokenizer | Callable[[], HiggsAudioTokenizer] | None"


def open_processor(name_or_path: str | Path | Checkpoint, **where: Any) -> Checkpoint:
    """Finds the checkpoint of a processor. A download from a repository skips the weights of the language model.

    Args:
        name_or_path: as in `checkpoint.open_checkpoint`.
        **where: options of `checkpoint.FOLDER_OPTIONS`.

    Raises:
        CheckpointError: no such checkpoint, or a checkpoint without a text tokenizer.
    """
    return checkpoint.open_checkpoint(
        name_or_path, patterns=checkpoint.DOWNLOADED, required_file=TOKENIZER_FILE, **where
    )


def load_tokenizer(name_or_path: str | Path | Checkpoint, **options: Any) -> PreTrainedTokenizerFast:
    """Loads the fast text tokenizer of a checkpoint.

    Args:
        name_or_path: as in `open_processor`.
        **options: options of `checkpoint.FOLDER_OPTIONS` and of transformers' own `from_pretrained`.

    Raises:
        CheckpointError: no such checkpoint, or a tokenizer that does not load.
    """
    where = {name: options.pop(name) for name in checkpoint.FOLDER_OPTIONS if name in options}
    folder = open_processor(name_or_path, **where)
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder.folder, **options) if options else read_tokenizer(folder)
    except Exception as error:  # the tokenizers library raises a bare Exception for an invalid file
        raise CheckpointError(
            f"the tokenizer in {folder} does not load: {first_line(error)}; download the files again"
        ) from error


def choose_codec(
    source: "AudioTokenizerSource | str | Path", folder: Checkpoint, name: str, device_map: Any, hub: Mapping[str, Any]
) -> AudioTokenizerSource:
    """Returns the audio tokenizer of a processor, or a function that loads it.

    Args:
        source: an audio tokenizer, its folder or repository, or None for the audio tokenizer of the checkpoint.
        folder, name, device_map, hub: as in `find_codec`.

    Raises:
        CheckpointError: the audio tokenizer does not load.
        OptionError: no such device.
    """
    if source is None:
        return find_codec(folder, name, device_map, **hub)
    if isinstance(source, (str, Path)):
        return load_codec(source, device_map, **hub)
    if device_map is not None and isinstance(source, nn.Module):
        from higgs_audio.codec.loading import single_device

        return source.to(single_device(device_map))
    return source


def find_codec(folder: Checkpoint, name: str, device_map: Any = None, **hub: Any) -> AudioTokenizerSource:
    """Finds the audio tokenizer `name` of a checkpoint.

    Args:
        folder: the checkpoint.
        name: a folder inside the checkpoint, which is loaded now; or another path or repository, for which a function
            that loads it is returned.
        device_map: device of the audio tokenizer; the CPU when None.
        **hub: options of `checkpoint.HUB_OPTIONS`.

    Returns:
        None if the checkpoint has no such folder, as is the case for checkpoints of training runs.

    Raises:
        CheckpointError: the audio tokenizer does not load.
        OptionError: no such device.
    """
    if folder.path(name).is_dir():
        return load_codec(folder.inside(name), device_map)
    if name == CODEC_FOLDER:
        return None
    # `revision` belongs to the repository of the checkpoint.
    own_hub = {option: value for option, value in hub.items() if option != "revision"}
    return lambda: load_codec(name, device_map, **own_hub)


def load_codec(name_or_path: str | Path | Checkpoint, device_map: Any = None, **hub: Any) -> "HiggsAudioTokenizer":
    """Loads an audio tokenizer from its own folder or repository, in eval mode.

    Args:
        name_or_path: as in `HiggsAudioTokenizer.from_pretrained`.
        device_map: device of the audio tokenizer; the CPU when None.
        **hub: options of `checkpoint.HUB_OPTIONS`.

    Raises:
        CheckpointError: the audio tokenizer does not load.
        OptionError: no such device.
    """
    from higgs_audio.codec import HiggsAudioTokenizer

    try:
        codec = HiggsAudioTokenizer.from_pretrained(name_or_path, device_map=device_map, **hub)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the audio tokenizer {str(name_or_path)!r} does not load: {first_line(error)}; pass another one, or its "
            "folder, as audio_tokenizer="
        ) from error
    return codec.eval()


def write_processor(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: ProcessorConfig,
    codec: "HiggsAudioTokenizer | None",
    save_codec: bool,
    processor_class: str,
) -> None:
    """Writes a processor's files: text tokenizer, config, and with `save_codec` the audio tokenizer.

    Without `save_codec` the config stores the folder or repository that the audio tokenizer was loaded from.
    """
    _save_tokenizer(tokenizer, folder)
    if codec is not None and save_codec:
        config = replace(config, codec=CODEC_FOLDER)
        codec.save_pretrained(folder / CODEC_FOLDER)
    elif codec is not None:
        config = replace(config, codec=codec.name_or_path or config.codec)
    fields = {"processor_class": processor_class, **asdict(config)}
    (folder / PROCESSOR_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a text tokenizer's files.

    Raises:
        OSError: they cannot be written; tokenizers itself raises a bare `Exception`.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise
