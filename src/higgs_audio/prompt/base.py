"""ProcessorBase: the parts of a processor, and how they are loaded, saved and uploaded."""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self, TypedDict, Unpack

from higgs_audio import checkpoint
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.checkpoint.names import VOICES_FILE
from higgs_audio.checkpoint.upload import UPLOAD_OPTIONS, upload
from higgs_audio.errors import CheckpointError, OptionError, nearest
from higgs_audio.prompt.audio_tokenizer import check_audio_tokenizer
from higgs_audio.prompt.config import ProcessorConfig, ProcessorFields, read_processor_config
from higgs_audio.prompt.encoder import PromptEncoder
from higgs_audio.prompt.loading import (
    AudioTokenizerSource,
    choose_codec,
    load_tokenizer,
    open_processor,
    write_processor,
)

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

# Accepted without effect: the audio tokenizer is always float32, because in half precision the nearest codebook entry
# changes, and no checkpoint comes with code.
UNUSED_OPTIONS = ("dtype", "torch_dtype", "trust_remote_code", "_from_auto")
OPTIONS = ("audio_tokenizer", "device_map", "limits", *checkpoint.FOLDER_OPTIONS, *UNUSED_OPTIONS)


class ProcessorLoadOptions(checkpoint.FolderOptions, total=False):
    """Further keyword options of `from_pretrained`: they select the folder, or have no effect (dtype and the rest)."""

    dtype: torch.dtype | str | None
    torch_dtype: torch.dtype | str | None
    trust_remote_code: bool | None


class UploadOptions(TypedDict, total=False):
    """Further keyword options of `push_to_hub`: `private` applies to a new repository; others as in huggingface_hub."""

    private: bool | None
    token: str | bool | None
    revision: str | None
    commit_message: str | None
    commit_description: str | None
    create_pr: bool | None


class ProcessorBase:
    """Holds the text tokenizer, the audio tokenizer and the config of a `HiggsAudioProcessor`, which documents them."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        audio_tokenizer: AudioTokenizerSource = None,
        limits: AudioLimits | None = None,
        **config: Unpack[ProcessorFields],
    ) -> None:
        _check_names(config, ProcessorConfig.__dataclass_fields__)
        self.config = ProcessorConfig(**config)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
            raise OptionError(f"the tokenizer is a {type(tokenizer).__name__}; give the fast tokenizer of a checkpoint")
        if not isinstance(limits, (AudioLimits, NoneType)):
            raise OptionError(f"limits is a {type(limits).__name__}; give AudioLimits(...), or None")
        self.tokenizer = tokenizer
        self.limits = limits or AudioLimits()
        self.voices: dict[str, Any] = {}  # contents of voices.json, which `save_pretrained` writes again
        self._encoder = PromptEncoder(tokenizer, self.config.audio_num_codebooks, self.config.audio_codebook_size)
        assert self._encoder.ids  # accessed now, so that a tokenizer without special tokens fails here
        self.load_audio_tokenizer: Callable[[], HiggsAudioTokenizer] | None = None
        self._audio_tokenizer: HiggsAudioTokenizer | None = None
        if callable(audio_tokenizer) and not isinstance(audio_tokenizer, torch.nn.Module):
            self.load_audio_tokenizer = audio_tokenizer
        elif audio_tokenizer is not None:
            self._audio_tokenizer = check_audio_tokenizer(audio_tokenizer, self.config)

    @property
    def audio_tokenizer(self) -> "HiggsAudioTokenizer | None":
        """The audio tokenizer, loaded on first access if loading was deferred; None without one.

        Raises:
            CheckpointError: it does not load, or has other codebooks.
        """
        if self._audio_tokenizer is None and self.load_audio_tokenizer is not None:
            self._audio_tokenizer = check_audio_tokenizer(self.load_audio_tokenizer(), self.config)
        return self._audio_tokenizer

    @property
    def text_frontend(self) -> str:
        """The conversion of the text of user turns: "none" or "phonemes"."""
        return self.config.text_frontend

    @property
    def sampling_rate(self) -> int:
        """Samples per second, 24000."""
        return self.config.sampling_rate

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | checkpoint.Checkpoint,
        *,
        audio_tokenizer: "HiggsAudioTokenizer | str | Path | None" = None,
        device_map: Any = None,
        limits: AudioLimits | None = None,
        **options: Unpack[ProcessorLoadOptions],
    ) -> Self:
        """Loads the text tokenizer, `processor_config.json` and the audio tokenizer.

        All layouts are supported: ours (audio tokenizer in the folder `codec`), transformers' (which contains a
        repository or path), and the original one, without processor_config.json. An audio tokenizer outside the
        checkpoint is loaded when it is first needed.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or a name that
                `checkpoint.open_checkpoint` accepts: "nano", a checkpoint, a repository.
            audio_tokenizer: a loaded audio tokenizer, or its folder or repository.
            device_map: device of the audio tokenizer: "cpu", "cuda", "auto" ...
            limits: see the class.
            **options: see `ProcessorLoadOptions`.

        Raises:
            OptionError: an unknown option.
            CheckpointError: no such checkpoint, or files that do not match.

        >>> HiggsAudioProcessor.from_pretrained("nano", device_map="cpu", torch_dtype="auto").text_frontend
        'phonemes'
        """
        _check_names(options, OPTIONS)
        hub: dict[str, Any] = {name: value for name, value in options.items() if name in checkpoint.HUB_OPTIONS}
        folder = open_processor(pretrained_model_name_or_path, subfolder=options.get("subfolder"), **hub)
        config = read_processor_config(folder)
        tokenizer = load_tokenizer(folder)
        source = choose_codec(audio_tokenizer, folder, config.codec, device_map, hub)
        processor = cls(tokenizer, source, limits, **asdict(config))
        processor.voices = dict(folder.voices)
        return processor

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        save_audio_tokenizer: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Unpack[UploadOptions],
    ) -> None:
        """Writes the files that `from_pretrained` reads, with the audio tokenizer in the folder `codec`.

        An existing folder is replaced once all files are written.

        Args:
            save_directory: a folder, created if it does not exist.
            save_audio_tokenizer: False stores the folder or repository that the audio tokenizer was loaded from.
            push_to_hub: whether to upload the folder.
            repo_id: repository of the upload; the folder's name when None.
            **options: see `UploadOptions`.

        Raises:
            OptionError: an unknown option.
            CheckpointError: `save_directory` is a file, or cannot be written.
        """
        _check_names(options, UPLOAD_OPTIONS)
        folder = Path(os.path.abspath(save_directory))
        with checkpoint.atomic_folder(folder) as part:
            codec = self.audio_tokenizer if save_audio_tokenizer else self._audio_tokenizer
            write_processor(part, self.tokenizer, self.config, codec, save_audio_tokenizer, type(self).__name__)
            if self.voices:
                (part / VOICES_FILE).write_text(json.dumps(self.voices, indent=1) + "\n", encoding="utf-8")
        if push_to_hub:
            upload(folder, repo_id or folder.name, options)

    def push_to_hub(self, repo_id: str, *, save_audio_tokenizer: bool = True, **options: Unpack[UploadOptions]) -> str:
        """Uploads the processor's files to a repository of the hub, which is created if it does not exist.

        Args:
            repo_id: "org/name".
            save_audio_tokenizer: as in `save_pretrained`.
            **options: see `UploadOptions`.

        Returns:
            The URL of the commit.

        Raises:
            OptionError: an unknown option. Without network or permission, huggingface_hub raises its own errors.
        """
        _check_names(options, UPLOAD_OPTIONS)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, save_audio_tokenizer=save_audio_tokenizer)
            return upload(folder, repo_id, options)

    def _codec(self) -> "HiggsAudioTokenizer":
        codec = self.audio_tokenizer
        if codec is None:
            raise CheckpointError(
                "the processor has no audio tokenizer; load it from a checkpoint with one, or pass audio_tokenizer="
            )
        return codec


def _check_names(options: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(options) - set(known)):
        public = [name for name in known if not name.startswith("_")]
        raise OptionError(f"unknown option {unknown[0]!r}; {nearest(unknown[0], public)}")
