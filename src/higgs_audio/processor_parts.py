"""The parts of a processor as a checkpoint holds them: its folder, its text tokenizer, its audio tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from higgs_audio import checkpoint
from higgs_audio.errors import CheckpointError
from higgs_audio.processor_config import CODEC_FOLDER

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

TOKENIZER_FILE = "tokenizer.json"


def find_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """A folder with a tokenizer needs no model; anything else is looked for as a checkpoint.

    Raises:
        CheckpointError: no such checkpoint.
    """
    folder = Path(name_or_path)
    return folder if (folder / TOKENIZER_FILE).is_file() else checkpoint.resolve(name_or_path, revision)


def load_tokenizer(name_or_path: str | Path, revision: str | None = None, **options: Any) -> PreTrainedTokenizerFast:
    """The fast text tokenizer of a checkpoint; options are those of transformers' own `from_pretrained`.

    Raises:
        CheckpointError: no such checkpoint, or none of its files is a tokenizer.
    """
    folder = find_folder(name_or_path, revision)
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that loads: {str(error).strip().splitlines()[0]}") from error


def find_codec(folder: Path, name: str, device_map: Any) -> "HiggsAudioTokenizer | Callable[[], Any] | None":
    """The audio tokenizer called `name` in a checkpoint: a folder inside it is loaded, a path or repository of its own
    is put off until it is needed. None where the checkpoint has no such folder, as those of training runs."""
    if (folder / name).is_dir():
        return load_codec(folder / name, device_map)
    if name == CODEC_FOLDER:
        return None
    return lambda: load_codec(name, device_map)


def load_codec(name_or_path: str | Path, device_map: Any) -> "HiggsAudioTokenizer":
    """An audio tokenizer in a folder or repository of its own, in eval mode.

    Raises:
        CheckpointError: it does not load.
    """
    from higgs_audio.codec import HiggsAudioTokenizer

    try:
        codec = HiggsAudioTokenizer.from_pretrained(name_or_path, device_map=device_map)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the audio tokenizer {str(name_or_path)!r} does not load: {str(error).strip().splitlines()[0]} Pass "
            "audio_tokenizer= with one that is loaded, or its folder"
        ) from error
    return codec.eval()
