"""ProcessorConfig: the contents of `processor_config.json`, in our layout and in transformers'."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from higgs_audio.checkpoint import CODEC_FOLDER, CONFIG_FILE, PROCESSOR_FILE, Checkpoint, as_checkpoint
from higgs_audio.errors import CheckpointError, OptionError, nearest

TEXT_FRONTENDS = ("none", "phonemes")
POSITIONS_PER_SECOND = 50  # positions of the audio tower, of two mel frames of 10 ms each
PUBLISHED_CODEC = "bosonai/higgs-audio-v2-tokenizer"  # for the original layout, which does not name one


class ProcessorFields(TypedDict, total=False):
    """The fields of `ProcessorConfig`, which documents them, as keyword arguments."""

    audio_num_codebooks: int
    audio_codebook_size: int
    sampling_rate: int
    text_frontend: str
    codec: str
    encode_whisper_embed: bool
    encode_audio_in_tokens: bool
    num_mel_bins: int
    window_seconds: int


@dataclass(frozen=True)
class ProcessorConfig:
    """The contents of `processor_config.json`.

    Attributes:
        audio_num_codebooks, audio_codebook_size: K and V of the language model; stream bos is V, stream eos V + 1.
        sampling_rate: sample rate of the audio tokenizer, in Hz.
        text_frontend: "none", or "phonemes" for a model whose input is English phonemes: the texts of user turns are
            converted, other texts are not.
        codec: the audio tokenizer: a folder inside the checkpoint, another path, or a repository.
        encode_whisper_embed, encode_audio_in_tokens: whether audio in user and system turns is encoded as features for
            the audio tower and as codes; with both, features come first.
        num_mel_bins, window_seconds: sizes of these features; longer audio is split into several windows.

    Raises:
        OptionError: a value of another type, a number below 1, an unknown text frontend, or neither features nor codes.

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
    encode_whisper_embed: bool = False
    encode_audio_in_tokens: bool = True
    num_mel_bins: int = 128
    window_seconds: int = 30  # as in Whisper

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            value: Any = getattr(self, name)
            if type(value) is not kind or (kind is int and value < 1) or value == "":
                raise OptionError(f"{name}={value!r:.60}; allowed: {_ALLOWED[kind]}")
        if self.text_frontend not in TEXT_FRONTENDS:
            raise OptionError(f"text_frontend={self.text_frontend!r}; {nearest(self.text_frontend, TEXT_FRONTENDS)}")
        if not self.encode_whisper_embed and not self.encode_audio_in_tokens:
            raise OptionError("encode_whisper_embed and encode_audio_in_tokens are both False; set one of them to True")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ProcessorConfig":
        """Reads the fields of our layout, of transformers', or of both in one file.

        Our `codec` takes precedence: transformers' is an absolute path, which is wrong once the folder has moved.

        Raises:
            OptionError: an invalid field.
        """
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        if "codec" not in known and isinstance(tokenizer := fields.get("audio_tokenizer"), Mapping):
            known["codec"] = tokenizer.get("audio_tokenizer_name_or_path") or CODEC_FOLDER
        if "audio_stream_bos_id" in fields:
            known["audio_codebook_size"] = fields["audio_stream_bos_id"]
        if isinstance(extractor := fields.get("feature_extractor"), Mapping):
            known["sampling_rate"] = extractor.get("sampling_rate", cls.sampling_rate)
        return cls(**known)

    @classmethod
    def of_model(cls, fields: Mapping[str, Any], codec: str) -> "ProcessorConfig":
        """Derives the config from the `config.json` of a language model, which determines how audio is encoded.

        Raises:
            OptionError: an invalid field.
        """
        tower = fields.get("audio_encoder_config") or {}
        if not isinstance(tower, Mapping):
            raise OptionError(f"audio_encoder_config={tower!r:.60}; give an object with fields")
        known = {name: fields[name] for name in ("encode_whisper_embed", "encode_audio_in_tokens") if name in fields}
        positions = tower.get("max_source_positions", POSITIONS_PER_SECOND * cls.window_seconds)
        if type(positions) is not int:
            raise OptionError(f"max_source_positions={positions!r:.60}; give {POSITIONS_PER_SECOND} for each second")
        num_mel_bins = tower.get("num_mel_bins", cls.num_mel_bins)
        return cls(**known, codec=codec, num_mel_bins=num_mel_bins, window_seconds=positions // POSITIONS_PER_SECOND)


_TYPES: dict[str, Any] = {field.name: type(field.default) for field in fields(ProcessorConfig)}
_ALLOWED = {int: "a whole number of at least 1", str: "a string that is not empty", bool: "True or False"}


def read_processor_config(folder: str | Path | Checkpoint) -> ProcessorConfig:
    """Reads the `processor_config.json` of a checkpoint.

    The original layout lacks this file: the fields then come from the model's config, and the audio tokenizer is the
    published one unless the folder contains one.

    Raises:
        CheckpointError: not a JSON object, or an invalid field.
    """
    checkpoint = as_checkpoint(folder)
    name = PROCESSOR_FILE if checkpoint.has(PROCESSOR_FILE) else CONFIG_FILE
    content = checkpoint.read_if_present(name)
    try:
        if name == PROCESSOR_FILE:
            return ProcessorConfig.from_dict(content)
        codec = PUBLISHED_CODEC if checkpoint.codec is None else CODEC_FOLDER
        return ProcessorConfig.of_model(content, codec)
    except OptionError as error:
        raise CheckpointError(f"{checkpoint.path(name)} does not fit: {error}") from error
