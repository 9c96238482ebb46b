"""ProcessorConfig: what `processor_config.json` holds, in our layout and in transformers'."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_audio.errors import CheckpointError, OptionError, nearest

PROCESSOR_FILE = "processor_config.json"
TEXT_FRONTENDS = ("none", "phonemes")
CODEC_FOLDER = "codec"
PUBLISHED_CODEC = "bosonai/higgs-audio-v2-tokenizer"  # of checkpoints in the original layout, which name none


@dataclass(frozen=True)
class ProcessorConfig:
    """What `processor_config.json` holds.

    Attributes:
        audio_num_codebooks, audio_codebook_size: K and V of the language model; stream bos is V, stream eos V + 1.
        sampling_rate: of the audio tokenizer, in Hz.
        text_frontend: "none", or "phonemes" where the model reads English as phonemes: what user turns say is
            converted, and nothing else.
        codec: the audio tokenizer: a folder inside the checkpoint, or a path or repository of its own.

    Raises:
        OptionError: another text frontend.

    Source: the fields of the published `config.json` and of transformers' `processor_config.json`; `text_frontend` and
    `codec` are ours.

    >>> ProcessorConfig(text_frontend="phonemes").codec
    'codec'
    """

    audio_num_codebooks: int = 8
    audio_codebook_size: int = 1024
    sampling_rate: int = 24000
    text_frontend: str = "none"
    codec: str = CODEC_FOLDER

    def __post_init__(self) -> None:
        if self.text_frontend not in TEXT_FRONTENDS:
            raise OptionError(f"text_frontend={self.text_frontend!r}; {nearest(self.text_frontend, TEXT_FRONTENDS)}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ProcessorConfig":
        """Our own file, or the one that transformers writes for the published checkpoint."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        if isinstance(tokenizer := fields.get("audio_tokenizer"), Mapping):
            known["codec"] = tokenizer.get("audio_tokenizer_name_or_path") or CODEC_FOLDER
        if "audio_stream_bos_id" in fields:
            known["audio_codebook_size"] = fields["audio_stream_bos_id"]
        if isinstance(extractor := fields.get("feature_extractor"), Mapping):
            known["sampling_rate"] = extractor.get("sampling_rate", cls.sampling_rate)
        return cls(**known)


def read_processor_config(folder: Path) -> ProcessorConfig:
    """The folder's `processor_config.json`. The original layout has none: defaults, and the published audio tokenizer
    unless one lies in the folder.

    Raises:
        CheckpointError: not a JSON object, or a field that does not fit.
    """
    file = folder / PROCESSOR_FILE
    if not file.is_file():
        inside = (folder / CODEC_FOLDER).is_dir()
        return ProcessorConfig(codec=CODEC_FOLDER if inside else PUBLISHED_CODEC)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, Mapping):
        raise CheckpointError(f"{file} holds a {type(fields).__name__}; expected an object of fields")
    return ProcessorConfig.from_dict(fields)
