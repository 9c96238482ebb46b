"""HiggsAudioProcessor: chat messages to the inputs and labels of the language model, and its output back to sound."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from higgs_audio import audio as audio_io
from higgs_audio import checkpoint, template
from higgs_audio.audio import Waveform
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import revert_delay
from higgs_audio.errors import AudioError, CheckpointError, CodesError, OptionError, PromptError, nearest
from higgs_audio.features import WINDOW_SECONDS, mel_windows
from higgs_audio.inputs import Heard, PromptEncoder
from higgs_audio.sources import as_sources, read_source, source_key
from higgs_audio.template import AudioSource, Piece
from higgs_audio.tower import MIN_MELS, num_features

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

CONFIG_FILE = "processor_config.json"
TEXT_FRONTENDS = ("none", "phonemes")
ROUNDING = 2  # frames by which the codes of a recording may be more or fewer than its features
# Accepted and without effect: the audio tokenizer is fp32, and no code comes with a checkpoint.
UNUSED_OPTIONS = ("dtype", "torch_dtype", "trust_remote_code", "_from_auto")

Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ProcessorConfig:
    """What `processor_config.json` holds.

    Attributes:
        audio_num_codebooks, audio_codebook_size: K and V of the language model; stream bos is V, stream eos V + 1.
        sampling_rate: of the audio tokenizer, in Hz.
        text_frontend: "none", or "phonemes" where the model reads English as phonemes: what user turns say is
            converted, and nothing else.
        codec: the audio tokenizer: a folder inside the checkpoint, or a path or repository of its own.
        encode_whisper_embed, encode_audio_in_tokens: what audio in user and system turns becomes: features for the
            audio tower, codes, or the former and then the latter.
        num_mel_bins, window_seconds: of these features; longer audio is several windows.
    """

    audio_num_codebooks: int = 8
    audio_codebook_size: int = 1024
    sampling_rate: int = 24000
    text_frontend: str = "none"
    codec: str = "codec"
    encode_whisper_embed: bool = False
    encode_audio_in_tokens: bool = True
    num_mel_bins: int = 128
    window_seconds: int = WINDOW_SECONDS

    def __post_init__(self) -> None:
        if self.text_frontend not in TEXT_FRONTENDS:
            raise OptionError(f"text_frontend={self.text_frontend!r}; {nearest(self.text_frontend, TEXT_FRONTENDS)}")
        if not self.encode_whisper_embed and not self.encode_audio_in_tokens:
            raise OptionError("encode_whisper_embed and encode_audio_in_tokens are both False; set one of them")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ProcessorConfig":
        """Our own file, or the one that transformers writes for the published checkpoint."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        if isinstance(tokenizer := fields.get("audio_tokenizer"), Mapping):
            known["codec"] = tokenizer.get("audio_tokenizer_name_or_path") or "codec"
        if "audio_stream_bos_id" in fields:
            known["audio_codebook_size"] = fields["audio_stream_bos_id"]
        if "feature_extractor" in fields:
            known["sampling_rate"] = fields["feature_extractor"]["sampling_rate"]
        return cls(**known)

    @classmethod
    def of_model(cls, fields: Mapping[str, Any]) -> "ProcessorConfig":
        """What a language model's `config.json` says about audio in user turns."""
        tower = {"num_mel_bins": 128, "max_source_positions": 1500, **(fields.get("audio_encoder_config") or {})}
        known = {name: fields[name] for name in ("encode_whisper_embed", "encode_audio_in_tokens") if name in fields}
        # Two mel frames of 10 ms a position.
        return cls(**known, num_mel_bins=tower["num_mel_bins"], window_seconds=tower["max_source_positions"] // 50)


@dataclass(frozen=True)
class HiggsAudioResponse:
    """What the model answered: `audio` float32 [S] in [-1, 1] or None, the text beside it, samples a second."""

    audio: np.ndarray | None
    generated_text: str
    sampling_rate: int


class HiggsAudioProcessor:
    """Text tokenizer, audio tokenizer and prompt format in one.

    >>> processor = HiggsAudioProcessor.from_pretrained(higgs_audio.NANO)  # doctest: +SKIP
    >>> inputs = processor.apply_chat_template([{"role": "user", "content": "Hello."}])  # doctest: +SKIP
    >>> outputs = model.generate(**inputs)  # doctest: +SKIP
    >>> response = processor.decode(*outputs[:2], processor.get_prompt_len(inputs.input_ids))  # doctest: +SKIP
    >>> processor.save_audio(response.audio, "output.wav")  # doctest: +SKIP

    Args:
        tokenizer: a fast text tokenizer with the special tokens of `template.SPECIAL_TOKENS`.
        audio_tokenizer: a `HiggsAudioTokenizer`; may be None where all audio is given as codes and none is decoded.
        **config: fields of `ProcessorConfig`.

    Raises:
        CheckpointError: the tokenizer lacks a special token, or the audio tokenizer has other codebooks.
        OptionError: an unknown field.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        audio_tokenizer: "HiggsAudioTokenizer | None" = None,
        **config: Any,
    ) -> None:
        if unknown := sorted(set(config) - set(ProcessorConfig.__dataclass_fields__)):
            known = nearest(unknown[0], ProcessorConfig.__dataclass_fields__)
            raise OptionError(f"unknown field {unknown[0]!r}; {known}")
        self.config = ProcessorConfig(**config)
        self.tokenizer = tokenizer
        self.audio_tokenizer = audio_tokenizer
        self._encoder = PromptEncoder(tokenizer, self.config.audio_num_codebooks, self.config.audio_codebook_size)
        assert self._encoder.ids  # read now, so that a tokenizer without them is refused here
        if audio_tokenizer is not None:
            self._check_codebooks(audio_tokenizer)

    def _check_codebooks(self, audio_tokenizer: "HiggsAudioTokenizer") -> None:
        theirs = (audio_tokenizer.config.num_codebooks, audio_tokenizer.config.codebook_size)
        ours = (self.config.audio_num_codebooks, self.config.audio_codebook_size)
        if theirs != ours or audio_tokenizer.config.sample_rate != self.config.sampling_rate:
            raise CheckpointError(
                f"the audio tokenizer has {theirs[0]} codebooks of {theirs[1]} at {audio_tokenizer.config.sample_rate} "
                f"Hz, the processor expects {ours[0]} of {ours[1]} at {self.config.sampling_rate} Hz"
            )

    @property
    def text_frontend(self) -> str:
        """What is done to the words of user turns: "none" or "phonemes"."""
        return self.config.text_frontend

    @property
    def sampling_rate(self) -> int:
        """Samples a second, 24000."""
        return self.config.sampling_rate

    # Files.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        audio_tokenizer: "HiggsAudioTokenizer | None" = None,
        device_map: Any = None,
        revision: str | None = None,
        **options: Any,
    ) -> "HiggsAudioProcessor":
        """Loads the tokenizer's files, `processor_config.json` (defaults without it) and the audio tokenizer.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or what `checkpoint.resolve`
                finds: "nano", a checkpoint, a repository.
            audio_tokenizer: one that is loaded already.
            device_map: device of the audio tokenizer: "cpu", "cuda", "auto" ...
            revision: of a repository.
            **options: those of `UNUSED_OPTIONS`.

        Raises:
            OptionError: an unknown option. CheckpointError: no such checkpoint, or files that do not fit.
        """
        if unknown := sorted(set(options) - set(UNUSED_OPTIONS)):
            known = ("audio_tokenizer", "device_map", "revision", *UNUSED_OPTIONS[:-1])
            raise OptionError(f"unknown option {unknown[0]!r}; {nearest(unknown[0], known)}")
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "tokenizer.json").is_file():
            folder = checkpoint.resolve(pretrained_model_name_or_path, revision)
        config = _read_config(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        if audio_tokenizer is None:
            audio_tokenizer = _load_codec(folder, config.codec)
        if audio_tokenizer is not None and device_map is not None:
            audio_tokenizer.to(_device(device_map))
        return cls(tokenizer, audio_tokenizer, **asdict(config))

    def save_pretrained(self, save_directory: str | Path, *, save_audio_tokenizer: bool = True, **options: Any) -> None:
        """Writes what `from_pretrained` reads, the audio tokenizer in the folder `codec`.

        With `save_audio_tokenizer=False` the written config names the folder or repository that it came from.
        Further options go to the tokenizer's own `save_pretrained`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder, **options)
        config = self.config
        if self.audio_tokenizer is not None and save_audio_tokenizer:
            config = replace(config, codec="codec")
            self.audio_tokenizer.save_pretrained(folder / config.codec)
        elif self.audio_tokenizer is not None:
            config = replace(config, codec=self.audio_tokenizer.name_or_path or config.codec)
        fields = {"processor_class": type(self).__name__, **asdict(config)}
        (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    # Prompts in.

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        force_audio: bool = False,
        start_index: int | Sequence[int | None] | None = None,
        output_labels: bool = True,
        allow_special: bool = False,
        piecewise: bool = False,
        sampling_rate: int | None = None,
        return_dict: bool = True,
        return_tensors: str = "pt",
    ) -> Any:
        """Renders one conversation or a batch of them.

        Both styles are read: scene tags inside the system string and `audio_url`, or a `scene` message and
        `url`, `path`, `audio`; also `raw_audio` (base64) and `codes` [K, F]. One conversation in both styles gives one
        prompt. See `template.read_conversation` and `template.render`.

        Text labels are those of the assistant's turns: text, recipient, the tokens around audio, the closing token.
        Audio labels are the codes of these turns and one eos per codebook. Everything else is -100: system and user
        turns, placeholders, headers, the generation prompt, and turns before `start_index` (but a recipient is always
        trained). So a reference recording in an assistant turn is trained unless `start_index` excludes it.

        Args:
            conversation: chat messages, or a list of such lists.
            add_generation_prompt: end with an assistant header; False for a finished training sample.
            tokenize: False returns the prompt as a string, one placeholder for each audio.
            force_audio: end with the token that opens an audio segment, as transformers' template does.
            start_index: index of the first message that is trained; one for each conversation if it is a list.
            output_labels: whether to add labels.
            allow_special: special tokens typed in a text are spelled out instead of refused; in user and assistant
                texts the generation instruction tags then count as tags.
            piecewise: tokenize each text by itself, as the original code does, instead of neighbours together.
            sampling_rate: of audio given as arrays without a rate, in Hz; `sampling_rate` of the processor when None.
            return_dict, return_tensors: only True and "pt".

        Returns:
            BatchFeature with input_ids [B, T] and attention_mask [B, T], padded on the left; audio_input_ids
            [B, F, K] delayed columns, padded on the right, and audio_input_ids_mask [B, F] bool; labels [B, T] and
            audio_labels [B, F, K]. F is 0 without audio. The n-th placeholder of a row takes its n-th column.

            Where audio in user and system turns is encoded for the audio tower (`encode_whisper_embed`), also
            input_features [N, mel bins, 3000] log-mel windows of 30 seconds in the order of the rows,
            feature_attention_mask [N, 3000] bool, and feature_positions [B, T] bool: the placeholders that take
            features, each window's before its columns. Longer audio is several windows, each between tokens of its
            own that open and close it.

        Raises:
            PromptError: a conversation that cannot be rendered. AudioError, CodesError: audio that cannot be used.
            TextError: a text that cannot be spoken (with phonemes). OptionError: an option that is not offered.
        """
        if return_tensors != "pt" or not return_dict:
            raise OptionError(f"{return_tensors=}, {return_dict=}; only return_tensors='pt' and return_dict=True exist")
        is_batch = bool(conversation) and isinstance(conversation[0], Sequence) and not isinstance(conversation[0], str)
        conversations: Sequence[Any] = conversation if is_batch else [conversation]
        starts = list(start_index) if isinstance(start_index, Sequence) else [start_index] * len(conversations)
        if len(starts) != len(conversations):
            raise OptionError(f"start_index has {len(starts)} entries for {len(conversations)} conversations")
        prompts = [
            template.render(
                template.read_conversation(messages, allow_special),
                add_generation_prompt=add_generation_prompt,
                force_audio=force_audio,
                start_index=start,
                speak=template.to_phonemes if self.text_frontend == "phonemes" else str,
            )
            for messages, start in zip(conversations, starts, strict=True)
        ]
        if not tokenize:
            strings = [template.join(pieces) for pieces in prompts]
            return strings if is_batch else strings[0]
        return self._encode(prompts, sampling_rate, output_labels, piecewise)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        output_labels: bool = False,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Encodes prompts that are strings already, as `apply_chat_template(..., tokenize=False)` returns them.

        Args:
            text: one prompt or several, every special token in them read as such. Labels are those of the assistant
                turns that the prompt closes.
            audio: one for each placeholder, in order over all prompts: an array, a path or URL, a `Waveform`, or a
                dict like an audio item of a message. One alone needs no list.
            output_labels, sampling_rate, return_tensors, returns: as in `apply_chat_template`.

        Raises:
            PromptError: another number of audios than placeholders. AudioError, CodesError: audio not usable.
        """
        if return_tensors != "pt":
            raise OptionError(f"{return_tensors=}; only return_tensors='pt' exists")
        prompts = [template.parse(prompt) for prompt in ([text] if isinstance(text, str) else text)]
        sources = as_sources(audio)
        wanted = sum(piece.kind == "audio" for pieces in prompts for piece in pieces)
        if len(sources) != wanted:
            raise PromptError(f"{len(sources)} audios for {wanted} placeholders; give one for each")
        remaining = iter(sources)
        filled = [
            [replace(piece, source=next(remaining)) if piece.kind == "audio" else piece for piece in pieces]
            for pieces in prompts
        ]
        return self._encode(filled, sampling_rate, output_labels)

    def encode_audio(self, waveform: Waveform) -> np.ndarray:
        """A recording -> its codes, int64 [K, F]. Any rate.

        Raises:
            AudioError: too short. CheckpointError: the processor has no audio tokenizer.
        """
        codec = self._codec()
        samples = torch.from_numpy(audio_io.resample(waveform, self.sampling_rate).samples)  # [S]
        codes = codec.encode(samples.to(codec.device)[None, None]).audio_codes  # [1, K, F]
        assert codes is not None
        return np.asarray(codes[0].cpu().numpy(), dtype=np.int64)

    def _codec(self) -> "HiggsAudioTokenizer":
        if self.audio_tokenizer is None:
            raise CheckpointError(
                "the processor has no audio tokenizer: load it from a checkpoint that has one, or pass audio_tokenizer="
            )
        return self.audio_tokenizer

    def _encode(
        self,
        prompts: Sequence[Sequence[Piece]],
        sampling_rate: int | None,
        output_labels: bool,
        piecewise: bool = False,
    ) -> BatchFeature:
        rate = sampling_rate or self.sampling_rate
        rows = []
        for pieces in prompts:
            sounds = [self._hear(piece, rate) for piece in pieces if piece.kind == "audio"]
            rows.append(self._encoder.encode(pieces, sounds, piecewise))
        return self._encoder.collate(rows, output_labels)

    def _hear(self, piece: Piece, rate: int) -> list[Heard]:
        """An audio -> its codes; or the windows that the audio tower hears, with codes where the model reads both."""
        source, config = piece.source or {}, self.config
        sound = {key: value for key, value in source.items() if key != "codes"}
        if piece.content == template.AUDIO_OUT or not config.encode_whisper_embed:
            return [Heard(self._resolve(source, rate))]
        if not sound and config.encode_audio_in_tokens:
            return [Heard(self._resolve(source, rate))]
        if "codes" in source and not config.encode_audio_in_tokens:
            raise PromptError("this model reads no codes in user and system turns; give the recording alone")
        waveform = read_source(sound, rate)
        windows = self._windows(waveform)
        if not config.encode_audio_in_tokens:
            return windows
        codes = self._resolve({"codes": source["codes"]} if "codes" in source else {"audio": waveform}, rate)
        return _with_codes(windows, codes)

    def _windows(self, waveform: Waveform) -> list[Heard]:
        """The windows of a recording, but for a rest too short to be heard."""
        windows = mel_windows(waveform, self.config.num_mel_bins, self.config.window_seconds)
        heard = [Heard(None, mels, count) for mels, count in windows if count >= MIN_MELS]
        if not heard:
            raise AudioError(f"the audio has less than {10 * MIN_MELS} ms, too little to be heard; give a longer one")
        return heard

    def _resolve(self, source: AudioSource, rate: int) -> Tensor:
        """An audio item -> its codes [K, F], on the CPU."""
        if source_key(source) == "codes":
            codes = torch.as_tensor(source["codes"]).cpu()
        else:
            codes = torch.from_numpy(self.encode_audio(read_source(source, rate)))
        num_codebooks = self.config.audio_num_codebooks
        if codes.dim() != 2 or len(codes) != num_codebooks or codes.dtype.is_floating_point:
            raise CodesError(f"codes of shape {tuple(codes.shape)}, {codes.dtype}; give integers [{num_codebooks}, F]")
        if codes.shape[1] == 0:
            raise PromptError("an audio item holds no frames; give a recording, or leave the item out")
        return codes.long()

    # Answers out.

    def get_prompt_len(self, input_ids: Tensor) -> int:
        """Tokens of a prompt [B, T], placeholders and padding included."""
        return int(input_ids.shape[-1])

    def decode(
        self,
        decoder_text_ids: Tensor | Sequence[int],
        decoder_audio_ids: Sequence[Tensor] | None = None,
        prompt_token_length: int = 0,
        skip_special_tokens: bool = True,
    ) -> HiggsAudioResponse:
        """One generated sequence -> sound and text.

        Args:
            decoder_text_ids: [T] or [1, T], prompt included.
            decoder_audio_ids: the generated segments, delayed columns [K, n] from the bos column on. Each is reverted
                to its complete frames and decoded by itself, and the sounds are joined.
            prompt_token_length: tokens of the prompt, which is left out of the text.
            skip_special_tokens: leave them, placeholders among them, out of the text.

        Returns:
            HiggsAudioResponse; audio is None where no segment has a complete frame.

        Raises:
            PromptError: several sequences (see `batch_decode`). CodesError: not segments.
        """
        ids = torch.as_tensor(decoder_text_ids)
        ids = ids[0] if ids.dim() == 2 and len(ids) == 1 else ids  # [T]
        if ids.dim() != 1:
            raise PromptError(f"decode takes one sequence and got ids of shape {tuple(ids.shape)}; use batch_decode")
        text = self.tokenizer.decode(ids[prompt_token_length:].tolist(), skip_special_tokens=skip_special_tokens)
        segments = [decoder_audio_ids] if isinstance(decoder_audio_ids, Tensor) else decoder_audio_ids or []
        codes = [revert_delay(torch.as_tensor(segment)) for segment in segments]  # each [K, F]
        sounds = [self._decode_codes(segment) for segment in codes if segment.shape[1]]  # each [S]
        return HiggsAudioResponse(np.concatenate(sounds) if sounds else None, str(text), self.sampling_rate)

    def batch_decode(
        self,
        decoder_text_ids: Tensor,
        decoder_audio_ids: Sequence[Sequence[Tensor]],
        prompt_token_length: int = 0,
        skip_special_tokens: bool = True,
    ) -> list[HiggsAudioResponse]:
        """`decode` for each row of ids [B, T] with its list of segments."""
        if len(decoder_text_ids) != len(decoder_audio_ids):
            raise PromptError(f"{len(decoder_text_ids)} sequences and {len(decoder_audio_ids)} lists of segments")
        return [
            self.decode(ids, segments, prompt_token_length, skip_special_tokens)
            for ids, segments in zip(decoder_text_ids, decoder_audio_ids, strict=True)
        ]

    def _decode_codes(self, codes: Tensor) -> np.ndarray:
        """[K, F] -> float32 [S]."""
        codec = self._codec()
        samples = codec.decode(codes.to(codec.device)[None]).audio_values  # [1, 1, S]
        assert samples is not None
        return np.asarray(samples[0, 0].float().cpu().numpy())

    def save_audio(self, audio: Any, saving_path: Any, format: str | None = None) -> None:
        """Writes one sound, or a list of sounds to a list of files. A file appears when it is complete.

        Args:
            audio: float [S] array or tensor at the processor's rate, or a list of them.
            saving_path: a path, or one for each sound; its suffix names the format.
            format: the format, where the suffix does not.

        Raises:
            AudioError: no audio (None). PromptError: another number of files than sounds.
        """
        sounds = audio if isinstance(audio, (list, tuple)) else [audio]
        paths = [saving_path] if isinstance(saving_path, (str, Path)) else list(saving_path)
        if len(sounds) != len(paths):
            raise PromptError(f"{len(sounds)} sounds and {len(paths)} files; give one path for each sound")
        if any(sound is None for sound in sounds):
            raise AudioError("there is no audio to save: the model answered without any")
        for sound, path in zip(sounds, paths, strict=True):
            samples = sound.detach().float().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
            audio_io.write(audio_io.from_array(samples, self.sampling_rate), path, format=format)


def _with_codes(windows: Sequence[Heard], codes: Tensor) -> list[Heard]:
    """Windows with each its part of the recording's codes [K, F]; the audio tower gives a feature for each frame.

    Raises:
        CodesError: the codes are not of this recording: a second of them is another than a second of it.
    """
    counts = [num_features(window.num_mels) for window in windows]
    if abs(codes.shape[1] - sum(counts)) > ROUNDING:
        raise CodesError(
            f"codes of {codes.shape[1]} frames beside a recording of about {sum(counts)}; give the recording's own, or "
            "leave them out"
        )
    parts = codes.split([*counts[:-1], codes.shape[1] - sum(counts[:-1])], dim=1)
    return [replace(heard, codes=part if part.shape[1] else None) for heard, part in zip(windows, parts, strict=True)]


def _read_config(folder: Path) -> ProcessorConfig:
    """The folder's `processor_config.json`; without it, as in the original layout, what the model's config says."""
    file = folder / CONFIG_FILE
    if file.is_file():
        return ProcessorConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    file = folder / checkpoint.CONFIG_FILE
    return (
        ProcessorConfig.of_model(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else ProcessorConfig()
    )


def _load_codec(folder: Path, name: str) -> "HiggsAudioTokenizer | None":
    """The audio tokenizer called `name` in a checkpoint: a folder inside it, else a path or repository of its own.

    None where the checkpoint has no such folder, as those of training runs.
    """
    from higgs_audio.codec import HiggsAudioTokenizer

    if not (folder / name).is_dir() and "/" not in name:
        return None
    inside = (folder / name).is_dir()
    return checkpoint.load(HiggsAudioTokenizer, folder / name if inside else checkpoint.resolve(name))


def _device(device_map: Any) -> Any:
    """Where "auto" means the GPU if there is one, and a dict names its first device."""
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return next(iter(device_map.values())) if isinstance(device_map, Mapping) else device_map


AutoProcessor.register(HiggsAudioConfig, HiggsAudioProcessor, exist_ok=True)
