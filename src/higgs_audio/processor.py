"""HiggsAudioProcessor: chat messages to the inputs and labels of the language model, and its output back to sound."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from higgs_audio import audio as audio_io
from higgs_audio import checkpoint, template
from higgs_audio.audio import AudioLimits, Waveform
from higgs_audio.delay import revert_delay
from higgs_audio.errors import AudioError, CheckpointError, CodesError, OptionError, PromptError, nearest
from higgs_audio.features import mel_windows
from higgs_audio.inputs import Heard, PromptEncoder
from higgs_audio.processor_config import (
    CODEC_FOLDER,
    PROCESSOR_FILE,
    ProcessorConfig,
    read_processor_config,
)
from higgs_audio.sources import as_sources, read_source, source_key
from higgs_audio.template import AudioSource, Piece
from higgs_audio.tower import MIN_MELS, num_features

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

ROUNDING = 2  # frames by which the codes of a recording may be more or fewer than its features
# Accepted and without effect: the audio tokenizer is fp32, because in half precision the nearest entry changes, and no
# code comes with a checkpoint.
UNUSED_OPTIONS = ("dtype", "torch_dtype", "trust_remote_code", "_from_auto")
OPTIONS = ("audio_tokenizer", "device_map", "revision", "limits", *UNUSED_OPTIONS[:-1])

Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class HiggsAudioResponse:
    """What the model answered: `audio` float32 [S] in [-1, 1] or None, the text beside it, samples a second."""

    audio: np.ndarray | None
    generated_text: str
    sampling_rate: int


class HiggsAudioProcessor:
    """Text tokenizer, audio tokenizer and prompt format in one.

    >>> processor = HiggsAudioProcessor.from_pretrained("nano")
    >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
    >>> inputs = processor.apply_chat_template([{"role": "user", "content": "Hello."}])
    >>> outputs = model.generate(**inputs, max_new_tokens=60, tokenizer=processor.tokenizer, seed=0)
    >>> response = processor.decode(*outputs, prompt_token_length=processor.get_prompt_len(inputs.input_ids))
    >>> response.sampling_rate, response.audio.ndim
    (24000, 1)
    >>> processor.save_audio(response.audio, "output.wav")

    Args:
        tokenizer: a fast text tokenizer with the special tokens of `template.SPECIAL_TOKENS`.
        audio_tokenizer: a `HiggsAudioTokenizer`, or a function that loads one when it is first needed; may be None
            where all audio is given as codes and none is decoded.
        limits: of the size and length of the audio that conversations hold, and of downloads; see `AudioLimits`.
        **config: fields of `ProcessorConfig`.

    Raises:
        CheckpointError: the tokenizer lacks a special token, or the audio tokenizer has other codebooks.
        OptionError: an unknown field.

    Source: the prompt format of boson-ai/higgs-audio, the calls of the mission's model page.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        audio_tokenizer: "HiggsAudioTokenizer | Callable[[], HiggsAudioTokenizer] | None" = None,
        limits: AudioLimits | None = None,
        **config: Any,
    ) -> None:
        if unknown := sorted(set(config) - set(ProcessorConfig.__dataclass_fields__)):
            known = nearest(unknown[0], ProcessorConfig.__dataclass_fields__)
            raise OptionError(f"unknown field {unknown[0]!r}; {known}")
        self.config = ProcessorConfig(**config)
        self.tokenizer = tokenizer
        self.limits = limits or AudioLimits()
        self._encoder = PromptEncoder(tokenizer, self.config.audio_num_codebooks, self.config.audio_codebook_size)
        assert self._encoder.ids  # read now, so that a tokenizer without them is refused here
        self._load_codec: Callable[[], HiggsAudioTokenizer] | None = None
        self._audio_tokenizer: HiggsAudioTokenizer | None = None
        if callable(audio_tokenizer) and not isinstance(audio_tokenizer, torch.nn.Module):
            self._load_codec = audio_tokenizer
        elif audio_tokenizer is not None:
            self._audio_tokenizer = self._checked(audio_tokenizer)

    @property
    def audio_tokenizer(self) -> "HiggsAudioTokenizer | None":
        """The audio tokenizer, loaded now where that was put off; None where there is none.

        Raises:
            CheckpointError: it cannot be had, or has other codebooks.
        """
        if self._audio_tokenizer is None and self._load_codec is not None:
            self._audio_tokenizer = self._checked(self._load_codec())
        return self._audio_tokenizer

    def _checked(self, audio_tokenizer: Any) -> "HiggsAudioTokenizer":
        theirs = (audio_tokenizer.config.num_codebooks, audio_tokenizer.config.codebook_size)
        ours = (self.config.audio_num_codebooks, self.config.audio_codebook_size)
        if theirs != ours or audio_tokenizer.config.sample_rate != self.config.sampling_rate:
            raise CheckpointError(
                f"the audio tokenizer has {theirs[0]} codebooks of {theirs[1]} at {audio_tokenizer.config.sample_rate} "
                f"Hz, the processor expects {ours[0]} of {ours[1]} at {self.config.sampling_rate} Hz"
            )
        return audio_tokenizer

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
        audio_tokenizer: "HiggsAudioTokenizer | str | Path | None" = None,
        device_map: Any = None,
        revision: str | None = None,
        limits: AudioLimits | None = None,
        **options: Any,
    ) -> "HiggsAudioProcessor":
        """Loads the tokenizer's files, `processor_config.json` and the audio tokenizer.

        Every layout is read: ours (audio tokenizer in the folder `codec`), transformers' (which names a repository or
        path), and the original one, without processor_config.json. An audio tokenizer that lies elsewhere is loaded
        when it is first needed.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or what `checkpoint.resolve`
                finds: "nano", a checkpoint, a repository.
            audio_tokenizer: one that is loaded already, or the folder or repository of one.
            device_map: device of the audio tokenizer: "cpu", "cuda", "auto" ...
            revision: of a repository.
            limits: see the class.
            **options: those of `UNUSED_OPTIONS`.

        Raises:
            OptionError: an unknown option. CheckpointError: no such checkpoint, or files that do not fit.

        >>> HiggsAudioProcessor.from_pretrained("nano", device_map="cpu", torch_dtype="auto").text_frontend
        'phonemes'
        """
        if unknown := sorted(set(options) - set(UNUSED_OPTIONS)):
            raise OptionError(f"unknown option {unknown[0]!r}; {nearest(unknown[0], OPTIONS)}")
        folder = _folder(pretrained_model_name_or_path, revision)
        config = read_processor_config(folder)
        tokenizer = load_tokenizer(folder)
        source: Any = audio_tokenizer
        if isinstance(audio_tokenizer, (str, Path)):
            source = _load_codec(audio_tokenizer, device_map)
        elif audio_tokenizer is None:
            source = _find_codec(folder, config.codec, device_map)
        elif device_map is not None:
            source = audio_tokenizer.to(_device(device_map))
        return cls(tokenizer, source, limits, **asdict(config))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        save_audio_tokenizer: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> None:
        """Writes what `from_pretrained` reads, the audio tokenizer in the folder `codec`.

        With `save_audio_tokenizer=False` the written config names the folder or repository that it came from.
        With `push_to_hub=True` the folder's files then go to the repository `repo_id`, by default the folder's name.
        Further options go to the tokenizer's own `save_pretrained`. What was in the folder before stays until all files
        are written.

        Raises:
            CheckpointError: `save_directory` is a file, or cannot be written.
        """
        folder = Path(os.path.abspath(save_directory))
        with checkpoint.whole_folder(folder) as part:
            self._write(part, save_audio_tokenizer, options)
        if push_to_hub:
            _upload(folder, repo_id or folder.name, {})

    def _write(self, folder: Path, save_audio_tokenizer: bool, options: Mapping[str, Any]) -> None:
        self.tokenizer.save_pretrained(folder, **options)
        config = self.config
        if save_audio_tokenizer and self.audio_tokenizer is not None:
            config = replace(config, codec=CODEC_FOLDER)
            self.audio_tokenizer.save_pretrained(folder / config.codec)
        elif self._audio_tokenizer is not None:
            config = replace(config, codec=self._audio_tokenizer.name_or_path or config.codec)
        fields = {"processor_class": type(self).__name__, **asdict(config)}
        (folder / PROCESSOR_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, save_audio_tokenizer: bool = True, **options: Any) -> str:
        """Writes the processor's files to a repository of the hub, which is made where there is none.

        Args:
            repo_id: "org/name".
            save_audio_tokenizer: as in `save_pretrained`.
            **options: private (of a new repository), token, revision, commit_message, commit_description, create_pr.

        Returns:
            The URL of the commit.

        Raises:
            OptionError: an unknown option. huggingface_hub's own errors: no network, or no right to write there.
        """
        if unknown := sorted(set(options) - set(UPLOAD_OPTIONS)):
            raise OptionError(f"unknown option {unknown[0]!r}; {nearest(unknown[0], UPLOAD_OPTIONS)}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, save_audio_tokenizer=save_audio_tokenizer)
            return _upload(folder, repo_id, options)

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
        style: str = "original",
        allow_private_urls: bool | None = None,
        return_dict: bool = True,
        return_tensors: str = "pt",
    ) -> Any:
        """Renders one conversation or a batch of them.

        Both ways to write a conversation are read: scene tags inside the system string, or a message of the role
        `scene`. An audio item has one of `audio_url`, `url`, `path` (paths and URLs alike: file:, data:, http:,
        https:), `audio` (an array, with `sampling_rate`), `raw_audio` (base64) and `codes` [K, F]. See
        `template.read_conversation` and `template.render`.

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
            style: "original", the prompts of Boson's code, which the published weights were trained with, or
                "transformers", those of the template published for transformers. They differ in what is trimmed, in
                the tokens around the audio of a scene, and in that the second always opens an audio segment.
            allow_private_urls: whether URLs may lead to private addresses; `limits` says so when None.
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

        Source: spec of the original `prepare_chatml_sample` and its collator; the mission's model page.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> processor.apply_chat_template([{"role": "user", "content": "Hello."}]).input_ids.shape[0]
        1
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
                template.read_conversation(messages, allow_special, style),
                add_generation_prompt=add_generation_prompt,
                force_audio=force_audio,
                start_index=start,
                speak=template.to_phonemes if self.text_frontend == "phonemes" else str,
                style=style,
            )
            for messages, start in zip(conversations, starts, strict=True)
        ]
        if not tokenize:
            strings = [template.join(pieces) for pieces in prompts]
            return strings if is_batch else strings[0]
        return self._encode(prompts, sampling_rate, output_labels, piecewise, allow_private_urls)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        output_labels: bool = False,
        sampling_rate: int | None = None,
        allow_private_urls: bool | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Encodes prompts that are strings already, as `apply_chat_template(..., tokenize=False)` returns them.

        Args:
            text: one prompt or several, every special token in them read as such. Labels are those of the assistant
                turns that the prompt closes.
            audio: one for each placeholder, in order over all prompts: an array in [-1, 1], a path or URL, a
                `Waveform`, or a dict like an audio item of a message. One alone needs no list.
            output_labels: whether to add labels.
            sampling_rate: of arrays, in Hz; that of the processor, 24000, when None.
            allow_private_urls, return_tensors: as in `apply_chat_template`.

        Returns:
            BatchFeature with input_ids [B, T], attention_mask [B, T], audio_input_ids [B, F, K] and
            audio_input_ids_mask [B, F], as `apply_chat_template` returns them; labels [B, T] and audio_labels
            [B, F, K] where asked for.

        Raises:
            PromptError: another number of audios than placeholders. AudioError, CodesError: audio not usable.
            CheckpointError: audio, and no audio tokenizer to encode it.

        Source: `HiggsAudioProcessor.__call__` of the mission's model page.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> prompt = "<|begin_of_text|><|audio_bos|><|AUDIO|><|audio_eos|><|eot_id|>"
        >>> second = np.zeros(24000, np.float32)  # 25 frames, and 9 more columns under the delay pattern
        >>> processor(prompt, audio=second, sampling_rate=24000).audio_input_ids.shape
        torch.Size([1, 34, 8])
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
        return self._encode(filled, sampling_rate, output_labels, allow_private_urls=allow_private_urls)

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
        codec = self.audio_tokenizer
        if codec is None:
            raise CheckpointError(
                "the processor has no audio tokenizer: load it from a checkpoint that has one, or pass audio_tokenizer="
            )
        return codec

    def _encode(
        self,
        prompts: Sequence[Sequence[Piece]],
        sampling_rate: int | None,
        output_labels: bool,
        piecewise: bool = False,
        allow_private_urls: bool | None = None,
    ) -> BatchFeature:
        rate = sampling_rate or self.sampling_rate
        limits = self.limits
        if allow_private_urls is not None:
            limits = replace(limits, allow_private_urls=allow_private_urls)
        rows = []
        for pieces in prompts:
            audios = [piece for piece in pieces if piece.kind == "audio"]
            _check_sources([piece.source or {} for piece in audios])
            sounds = [self._hear(piece, rate, limits) for piece in audios]
            rows.append(self._encoder.encode(pieces, sounds, piecewise))
        return self._encoder.collate(rows, output_labels)

    def _hear(self, piece: Piece, rate: int, limits: AudioLimits) -> list[Heard]:
        """An audio -> its codes; or the windows that the audio tower hears, with codes where the model reads both."""
        source, config = piece.source or {}, self.config
        sound = {key: value for key, value in source.items() if key != "codes"}
        if piece.content == template.AUDIO_OUT or not config.encode_whisper_embed:
            return [Heard(self._resolve(source, rate, limits))]
        if not sound and config.encode_audio_in_tokens:
            return [Heard(self._resolve(source, rate, limits))]
        if "codes" in source and not config.encode_audio_in_tokens:
            raise PromptError("this model reads no codes in user and system turns; give the recording alone")
        waveform = read_source(sound, rate, limits)
        windows = self._windows(waveform)
        if not config.encode_audio_in_tokens:
            return windows
        codes = self._resolve({"codes": source["codes"]} if "codes" in source else {"audio": waveform}, rate, limits)
        return _with_codes(windows, codes)

    def _windows(self, waveform: Waveform) -> list[Heard]:
        """The windows of a recording, but for a rest too short to be heard."""
        windows = mel_windows(waveform, self.config.num_mel_bins, self.config.window_seconds)
        heard = [Heard(None, mels, count) for mels, count in windows if count >= MIN_MELS]
        if not heard:
            raise AudioError(f"the audio has less than {10 * MIN_MELS} ms, too little to be heard; give a longer one")
        return heard

    def _resolve(self, source: AudioSource, rate: int, limits: AudioLimits) -> Tensor:
        """An audio item -> its codes [K, F], on the CPU."""
        if source_key(source) == "codes":
            codes = torch.as_tensor(source["codes"]).cpu()
        else:
            codes = torch.from_numpy(self.encode_audio(read_source(source, rate, limits)))
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
            HiggsAudioResponse: `audio` float32 [S] in [-1, 1] at `sampling_rate` (24000 samples a second, 960 for each
            frame), None where no segment has a complete frame; `generated_text` without the prompt.

        Raises:
            PromptError: several sequences (see `batch_decode`). CodesError: not segments. CheckpointError: codes, and
            no audio tokenizer to decode them.

        Source: `HiggsAudioProcessor.decode` of the mission's model page, whose text lacked its beginning.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> ids = processor.tokenizer.encode("prompt<|audio_out_bos|>said<|eot_id|>", add_special_tokens=False)
        >>> segment = torch.zeros(8, 2 + 9, dtype=torch.long)  # two frames under the delay pattern
        >>> for k in range(8):
        ...     segment[k, : k + 1], segment[k, k + 3 :] = 1024, 1025
        >>> response = processor.decode(torch.tensor([ids]), [segment], prompt_token_length=7)
        >>> response.generated_text, response.audio.shape
        ('said', (1920,))
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


def load_tokenizer(name_or_path: str | Path, revision: str | None = None, **options: Any) -> PreTrainedTokenizerFast:
    """The fast text tokenizer of a checkpoint; options are those of transformers' own `from_pretrained`.

    Raises:
        CheckpointError: no such checkpoint, or none of its files is a tokenizer.
    """
    folder = _folder(name_or_path, revision)
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that loads: {str(error).strip().splitlines()[0]}") from error


def _folder(name_or_path: str | Path, revision: str | None) -> Path:
    """A folder with a tokenizer needs no model; anything else is looked for as a checkpoint."""
    folder = Path(name_or_path)
    return folder if (folder / "tokenizer.json").is_file() else checkpoint.resolve(name_or_path, revision)


def _find_codec(folder: Path, name: str, device_map: Any) -> "HiggsAudioTokenizer | Callable[[], Any] | None":
    """The audio tokenizer called `name` in a checkpoint: a folder inside it is loaded, a path or repository of its own
    is put off until it is needed. None where the checkpoint has no such folder, as those of training runs."""
    if (folder / name).is_dir():
        return _load_codec(folder / name, device_map)
    if name == CODEC_FOLDER:
        return None
    return lambda: _load_codec(name, device_map)


def _load_codec(name_or_path: str | Path, device_map: Any) -> "HiggsAudioTokenizer":
    from higgs_audio.codec import HiggsAudioTokenizer

    try:
        codec = HiggsAudioTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the audio tokenizer {str(name_or_path)!r} does not load: {str(error).strip().splitlines()[0]} Pass "
            "audio_tokenizer= with one that is loaded, or its folder"
        ) from error
    return codec.eval() if device_map is None else codec.eval().to(_device(device_map))


def _check_sources(sources: Sequence[AudioSource]) -> None:
    """Every audio item has its recording."""
    if lacking := [number for number, source in enumerate(sources) if not source]:
        raise PromptError(
            f"{len(sources) - len(lacking)} recordings for {len(sources)} audio items: item {lacking[0]} has none, so "
            f"no audio in it; give it one of {', '.join(template.AUDIO_KEYS)}"
        )


UPLOAD_OPTIONS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


def _upload(folder: str | Path, repo_id: str, options: Mapping[str, Any]) -> str:
    """Everything in a folder -> a repository; the commit's URL."""
    api = HfApi(token=options.get("token"))
    repository = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
    rest = {name: value for name, value in options.items() if name not in ("private", "token")}
    message = rest.pop("commit_message", None) or "Upload processor"
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, **rest))


def _device(device_map: Any) -> Any:
    """Where "auto" means the GPU if there is one, and a dict names its first device."""
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return next(iter(device_map.values())) if isinstance(device_map, Mapping) else device_map
