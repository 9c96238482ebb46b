"""HiggsAudioProcessor: chat messages to the inputs and labels of the language model, and its output back to sound."""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from higgs_audio import checkpoint
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.sources import as_sources
from higgs_audio.audio.waveform import MAX_RATE, MIN_RATE, Waveform, resample
from higgs_audio.checkpoint.upload import UPLOAD_OPTIONS, upload
from higgs_audio.errors import AudioError, CheckpointError, OptionError, PromptError, check_count, nearest
from higgs_audio.prompt import template
from higgs_audio.prompt.audio_items import AudioItemOptions, encode_audio_items
from higgs_audio.prompt.config import CODEC_FOLDER, PROCESSOR_FILE, ProcessorConfig, read_processor_config
from higgs_audio.prompt.encoder import PromptEncoder
from higgs_audio.prompt.loading import choose_codec, find_folder, load_tokenizer
from higgs_audio.prompt.response import HiggsAudioResponse, read_ids, read_segments, save_sounds
from higgs_audio.prompt.template import Piece

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer

# Accepted and without effect: the audio tokenizer is fp32, because in half precision the nearest entry changes, and no
# code comes with a checkpoint.
UNUSED_OPTIONS = ("dtype", "torch_dtype", "trust_remote_code", "_from_auto")
OPTIONS = ("audio_tokenizer", "device_map", "limits", *checkpoint.FOLDER_OPTIONS, *UNUSED_OPTIONS)

Conversation = Sequence[Mapping[str, Any]]


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
        OptionError: an unknown field, or something else than a tokenizer, an audio tokenizer or limits.

    Source: the prompt format of boson-ai/higgs-audio, the calls of the published model page.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        audio_tokenizer: "HiggsAudioTokenizer | Callable[[], HiggsAudioTokenizer] | None" = None,
        limits: AudioLimits | None = None,
        **config: Any,
    ) -> None:
        _check_names(config, ProcessorConfig.__dataclass_fields__)
        self.config = ProcessorConfig(**config)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
            raise OptionError(f"the tokenizer is a {type(tokenizer).__name__}; give the fast one of a checkpoint")
        if not isinstance(limits, (AudioLimits, NoneType)):
            raise OptionError(f"limits is a {type(limits).__name__}; give AudioLimits(...), or None")
        self.tokenizer = tokenizer
        self.limits = limits or AudioLimits()
        self._encoder = PromptEncoder(tokenizer, self.config.audio_num_codebooks, self.config.audio_codebook_size)
        assert self._encoder.ids  # read now, so that a tokenizer without them is refused here
        self.load_audio_tokenizer: Callable[[], HiggsAudioTokenizer] | None = None
        self._audio_tokenizer: HiggsAudioTokenizer | None = None
        if callable(audio_tokenizer) and not isinstance(audio_tokenizer, torch.nn.Module):
            self.load_audio_tokenizer = audio_tokenizer
        elif audio_tokenizer is not None:
            self._audio_tokenizer = self._checked(audio_tokenizer)

    @property
    def audio_tokenizer(self) -> "HiggsAudioTokenizer | None":
        """The audio tokenizer, loaded now where that was put off; None where there is none.

        Raises:
            CheckpointError: it cannot be had, or has other codebooks.
        """
        if self._audio_tokenizer is None and self.load_audio_tokenizer is not None:
            self._audio_tokenizer = self._checked(self.load_audio_tokenizer())
        return self._audio_tokenizer

    def _checked(self, audio_tokenizer: Any) -> "HiggsAudioTokenizer":
        if not hasattr(getattr(audio_tokenizer, "config", None), "codebook_size"):
            raise OptionError(
                f"the audio tokenizer is a {type(audio_tokenizer).__name__}; give a HiggsAudioTokenizer, or a function "
                "that loads one"
            )
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
            limits: see the class.
            **options: `subfolder` of the files; of a repository revision, cache_dir, token, local_files_only and
                force_download; and those of `UNUSED_OPTIONS`.

        Raises:
            OptionError: an unknown option. CheckpointError: no such checkpoint, or files that do not fit.

        >>> HiggsAudioProcessor.from_pretrained("nano", device_map="cpu", torch_dtype="auto").text_frontend
        'phonemes'
        """
        _check_names(options, OPTIONS)
        hub = {name: options[name] for name in checkpoint.HUB_OPTIONS if name in options}
        folder = find_folder(pretrained_model_name_or_path, subfolder=options.get("subfolder"), **hub)
        config = read_processor_config(folder)
        tokenizer = load_tokenizer(folder)
        source = choose_codec(audio_tokenizer, folder, config.codec, device_map, hub)
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
        Further options are those of `push_to_hub`. What was in the folder before stays until all files are written.

        Raises:
            OptionError: an unknown option. CheckpointError: `save_directory` is a file, or cannot be written.
        """
        _check_names(options, UPLOAD_OPTIONS)
        folder = Path(os.path.abspath(save_directory))
        with checkpoint.whole_folder(folder) as part:
            self._write(part, save_audio_tokenizer)
        if push_to_hub:
            upload(folder, repo_id or folder.name, options)

    def _write(self, folder: Path, save_audio_tokenizer: bool) -> None:
        self.tokenizer.save_pretrained(folder)
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
        _check_names(options, UPLOAD_OPTIONS)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, save_audio_tokenizer=save_audio_tokenizer)
            return upload(folder, repo_id, options)

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

        Source: the original's `prepare_chatml_sample` and its collator; the published model page.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> processor.apply_chat_template([{"role": "user", "content": "Hello."}]).input_ids.shape[0]
        1
        """
        if return_tensors != "pt" or not return_dict:
            raise OptionError(f"{return_tensors=}, {return_dict=}; only return_tensors='pt' and return_dict=True exist")
        is_batch = _is_list(conversation) and len(conversation) > 0 and _is_list(conversation[0])
        conversations: Sequence[Any] = conversation if is_batch else [conversation]
        starts = _read_starts(start_index, len(conversations))
        prompts = [
            template.render(
                template.read_conversation(messages, allow_special, style),
                add_generation_prompt=add_generation_prompt,
                force_audio=force_audio,
                start_index=start,
                speak=template.to_phonemes if self.text_frontend == "phonemes" else None,
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
            PromptError: no prompt, or another number of audios than placeholders. AudioError, CodesError: audio that
            cannot be used. CheckpointError: audio, and no audio tokenizer to encode it.

        Source: `HiggsAudioProcessor.__call__` of the published model page.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> prompt = "<|begin_of_text|><|audio_bos|><|AUDIO|><|audio_eos|><|eot_id|>"
        >>> second = np.zeros(24000, np.float32)  # 25 frames, and 9 more columns under the delay pattern
        >>> processor(prompt, audio=second, sampling_rate=24000).audio_input_ids.shape
        torch.Size([1, 34, 8])
        """
        if return_tensors != "pt":
            raise OptionError(f"{return_tensors=}; only return_tensors='pt' exists")
        texts = [text] if isinstance(text, str) else text
        if not _is_list(texts) or not texts or not all(isinstance(prompt, str) and prompt for prompt in texts):
            raise PromptError(f"the prompts are {text!r:.60}; give a string, or a list of strings, none of them empty")
        prompts = [template.parse(prompt) for prompt in texts]
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
            AudioError: too short, or no `Waveform`. CheckpointError: the processor has no audio tokenizer.
        """
        if not isinstance(waveform, Waveform):
            raise AudioError(
                f"the recording is a {type(waveform).__name__}; make a Waveform with read() or from_array()"
            )
        codec = self._codec()
        samples = torch.from_numpy(resample(waveform, self.sampling_rate).samples)  # [S]
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
        rate, limits = self.sampling_rate if sampling_rate is None else sampling_rate, self.limits
        check_count("sampling_rate", rate, MIN_RATE, MAX_RATE, "None for that of the processor")
        if allow_private_urls is not None:
            limits = replace(limits, allow_private_urls=allow_private_urls)
        hearing = AudioItemOptions(self.config, self.encode_audio, rate, limits)
        rows = []
        for pieces in prompts:
            sounds = encode_audio_items([piece for piece in pieces if piece.kind == "audio"], hearing)
            rows.append(self._encoder.encode(pieces, sounds, piecewise))
        return self._encoder.collate(rows, output_labels)

    # Answers out.

    def get_prompt_len(self, input_ids: Tensor | Sequence[Any]) -> int:
        """Tokens of a prompt [B, T] or [T], placeholders and padding included.

        Raises:
            PromptError: not ids of the tokenizer's vocabulary, or of another shape.
        """
        ids = read_ids(input_ids, len(self.tokenizer))
        if ids.dim() not in (1, 2):
            raise PromptError(f"the prompt's ids have the shape {tuple(ids.shape)}; give [B, T] or [T]")
        return ids.shape[-1]

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
            PromptError: several sequences (see `batch_decode`), or ids that are not of the vocabulary. CodesError: not
            segments, or of another number of codebooks. OptionError: a prompt longer than the sequence.
            CheckpointError: codes, and no audio tokenizer to decode them.

        Source: `HiggsAudioProcessor.decode` of the published model page, whose text lacked its beginning.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> ids = processor.tokenizer.encode("prompt<|audio_out_bos|>said<|eot_id|>", add_special_tokens=False)
        >>> segment = torch.zeros(8, 2 + 9, dtype=torch.long)  # two frames under the delay pattern
        >>> for k in range(8):
        ...     segment[k, : k + 1], segment[k, k + 3 :] = 1024, 1025
        >>> response = processor.decode(torch.tensor([ids]), [segment], prompt_token_length=7)
        >>> response.generated_text, response.audio.shape
        ('said', (1920,))
        """
        ids = read_ids(decoder_text_ids, len(self.tokenizer))
        ids = ids[0] if ids.dim() == 2 and len(ids) == 1 else ids  # [T]
        if ids.dim() != 1:
            raise PromptError(f"decode takes one sequence and got ids of shape {tuple(ids.shape)}; use batch_decode")
        check_count("prompt_token_length", prompt_token_length, 0, len(ids))
        text = self.tokenizer.decode(ids[prompt_token_length:].tolist(), skip_special_tokens=skip_special_tokens)
        codes = read_segments(decoder_audio_ids, self.config.audio_num_codebooks, self.config.audio_codebook_size)
        sounds = [self._decode_codes(segment) for segment in codes if segment.shape[1]]  # each [S]
        return HiggsAudioResponse(np.concatenate(sounds) if sounds else None, str(text), self.sampling_rate)

    def batch_decode(
        self,
        decoder_text_ids: Tensor | Sequence[Tensor | Sequence[int]],
        decoder_audio_ids: Sequence[Sequence[Tensor]],
        prompt_token_length: int = 0,
        skip_special_tokens: bool = True,
    ) -> list[HiggsAudioResponse]:
        """`decode` for each row of ids [B, T] with its list of segments.

        Raises:
            PromptError: another number of lists than rows. Those of `decode`.
        """
        rows = decoder_text_ids if _is_list(decoder_text_ids) else read_ids(decoder_text_ids, len(self.tokenizer))
        if (isinstance(rows, Tensor) and rows.dim() != 2) or not _is_list(decoder_audio_ids):
            raise PromptError("batch_decode takes ids [B, T] and a list with the segments of each row; see decode")
        if len(rows) != len(decoder_audio_ids):
            raise PromptError(f"{len(rows)} sequences and {len(decoder_audio_ids)} lists of segments")
        return [
            self.decode(ids, segments, prompt_token_length, skip_special_tokens)
            for ids, segments in zip(rows, decoder_audio_ids, strict=True)
        ]

    def _decode_codes(self, codes: Tensor) -> np.ndarray:
        """[K, F] -> float32 [S] in [-1, 1]: what the audio tokenizer says may go a little over."""
        codec = self._codec()
        samples = codec.decode(codes.to(codec.device)[None]).audio_values  # [1, 1, S]
        assert samples is not None
        return np.asarray(samples[0, 0].float().clamp(-1, 1).cpu().numpy())

    def save_audio(self, audio: Any, saving_path: Any, format: str | None = None) -> None:
        """Writes one sound, or a list of sounds to a list of files. A file appears when it is complete.

        Args:
            audio: float [S] array or tensor at the processor's rate, or a list of them.
            saving_path: a path, or one for each sound; its suffix names the format.
            format: the format, where the suffix does not.

        Raises:
            AudioError: no audio (None). PromptError: another number of files than sounds. OptionError: no path.
        """
        save_sounds(audio, saving_path, self.sampling_rate, format)


def _check_names(options: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(options) - set(known)):
        public = [name for name in known if not name.startswith("_")]
        raise OptionError(f"unknown option {unknown[0]!r}; {nearest(unknown[0], public)}")


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, (str, bytes))


def _read_starts(start_index: Any, count: int) -> list[int | None]:
    """One start for each conversation."""
    starts = list(start_index) if _is_list(start_index) else [start_index] * count
    if len(starts) != count:
        raise OptionError(f"start_index has {len(starts)} entries for {count} conversations")
    for start in starts:
        if start is not None:
            check_count("start_index", start, 0, None, "None to train every assistant turn")
    return starts
