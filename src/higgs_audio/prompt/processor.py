"""HiggsAudioProcessor: chat messages to inputs and labels of the language model, and its outputs to audio and text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, overload

import numpy as np
from torch import Tensor
from transformers import BatchFeature
from typing_extensions import Unpack

from higgs_audio.audio.sources import source_key
from higgs_audio.audio.waveform import MAX_RATE, MIN_RATE, Waveform
from higgs_audio.errors import OptionError, PromptError, check_count, nearest
from higgs_audio.prompt import template
from higgs_audio.prompt.audio_items import AudioItemOptions, check_codes, encode_audio_items
from higgs_audio.prompt.audio_tokenizer import check_waveform, decode_codes, encode_waveform
from higgs_audio.prompt.base import ProcessorBase
from higgs_audio.prompt.batch import is_batch, is_list, parse_prompts, read_starts
from higgs_audio.prompt.conversation import Conversation, read_conversation
from higgs_audio.prompt.encoder import EncodedPrompt, PaddingSide
from higgs_audio.prompt.frontend import check_phonemes, to_phonemes
from higgs_audio.prompt.options import RenderKeywords, RenderOptions, read_render_options
from higgs_audio.prompt.response import HiggsAudioResponse, read_ids, read_segments, write_waveforms
from higgs_audio.prompt.template import Piece

PADDING_SIDES: tuple[str, ...] = get_args(PaddingSide)


class HiggsAudioProcessor(ProcessorBase):
    """Combines the text tokenizer, the audio tokenizer and the prompt format.

    >>> processor = HiggsAudioProcessor.from_pretrained("nano")
    >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
    >>> inputs = processor.apply_chat_template([{"role": "user", "content": "Hello."}])
    >>> outputs = model.generate(**inputs, max_new_tokens=60, tokenizer=processor.tokenizer, seed=0)
    >>> response = processor.decode(*outputs, prompt_token_length=processor.get_prompt_len(inputs.input_ids))
    >>> response.sampling_rate, response.audio.ndim
    (24000, 1)
    >>> processor.save_audio(response.audio, "output.wav")

    Args:
        tokenizer: a fast text tokenizer with all tokens of `special_tokens.SPECIAL_TOKENS`.
        audio_tokenizer: a `HiggsAudioTokenizer`, or a function that loads one when it is first needed; None if all
            audio is given as codes and none is decoded.
        limits: limits on the size and duration of audio in conversations, and on downloads; see `AudioLimits`.
        **config: fields of `ProcessorConfig`.

    Raises:
        CheckpointError: the tokenizer lacks a special token, or the audio tokenizer has other codebooks.
        OptionError: an unknown field, or an argument of another type.

    Source: the prompt format of boson-ai/higgs-audio and the calls in the published model card.
    """

    # Prompts.

    @overload
    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        tokenize: Literal[True] = True,
        output_labels: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        **options: Unpack[RenderKeywords],
    ) -> BatchFeature: ...

    @overload
    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        tokenize: Literal[False],
        output_labels: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        **options: Unpack[RenderKeywords],
    ) -> str | list[str]: ...

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        tokenize: bool = True,
        output_labels: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        **options: Unpack[RenderKeywords],
    ) -> BatchFeature | str | list[str]:
        """Renders and encodes one conversation or a batch of conversations.

        A scene is given as scene tags inside the system text, or as a message with the role `scene`. An audio item has
        one of `audio_url`, `url`, `path` (each a path or URL: file:, data:, http:, https:), `audio` (an array, with
        `sampling_rate`), `raw_audio` (base64) and `codes` [K, F]. See `read_conversation` and `template.render`.

        Text labels cover the assistant's turns: text, recipient, the tokens around audio, the closing token. Audio
        labels are the codes of these turns and one eos per codebook. All other labels are -100: system and user turns,
        placeholders, headers, the generation prompt, and turns before `start_index` (but a recipient is always
        trained). A reference recording in an assistant turn is therefore trained unless `start_index` excludes it.

        Args:
            conversation: chat messages, or a list of such lists.
            tokenize: False returns the prompt as a string, with one placeholder for each audio.
            output_labels: whether to add labels.
            return_dict, return_tensors: only True and "pt".
            **options: fields of `RenderOptions`: add_generation_prompt, force_audio, start_index and so on.

        Returns:
            BatchFeature with input_ids [B, T] and attention_mask [B, T], padded on the left; audio_input_ids
            [B, F, K] delayed columns, padded on the right, and audio_input_ids_mask [B, F] bool; labels [B, T] and
            audio_labels [B, F, K]. F is 0 without audio. The n-th placeholder of a row stands for its n-th column.

            If audio in user and system turns is encoded for the audio tower (`encode_whisper_embed`), also
            input_features [N, mel bins, 3000] log-mel windows of 30 seconds in the order of the rows,
            feature_attention_mask [N, 3000] bool, and feature_positions [B, T] bool: the placeholders of features,
            each window's before its columns. Longer audio is split into windows, each between its own opening and
            closing tokens.

        Raises:
            PromptError: a conversation that cannot be rendered.
            AudioError, CodesError: unusable audio or codes.
            TextError: a text that cannot be spoken (with phonemes).
            OptionError: an unsupported option.

        Source: the original's `prepare_chatml_sample` and its collator; the published model card.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> processor.apply_chat_template([{"role": "user", "content": "Hello."}]).input_ids.shape[0]
        1
        """
        if return_tensors != "pt" or not return_dict:
            raise OptionError(f"{return_tensors=}, {return_dict=}; allowed: return_tensors='pt' and return_dict=True")
        conversations: Sequence[Any] = conversation if is_batch(conversation) else [conversation]
        if tokenize:
            return self.collate(self.encode_conversations(conversations, **options), output_labels)
        strings = [template.join(pieces) for pieces in self._render(conversations, read_render_options(options))]
        return strings if is_batch(conversation) else strings[0]

    def encode_conversations(
        self, conversations: Sequence[Conversation], **options: Unpack[RenderKeywords]
    ) -> list[EncodedPrompt]:
        """Renders and encodes conversations without batching them; `collate` batches the result.

        For arguments and errors see `apply_chat_template`.

        Returns:
            One `EncodedPrompt` for each conversation. Its `turns` contain the role, token range, speaker tag length and
            audio placeholders of each turn, at positions before padding.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> prompt, = processor.encode_conversations([[{"role": "user", "content": "Hello."}]])
        >>> turn = prompt.last_user_turn
        >>> turn.role, processor.tokenizer.decode(prompt.input_ids[turn.start : turn.stop])
        ('user', 'həlˈO.')
        """
        render_options = read_render_options(options)
        if not is_list(conversations):
            raise PromptError(f"the conversations are {conversations!r:.60}; give a list of conversations")
        return self._encode(self._render(conversations, render_options), render_options)

    def collate(
        self, prompts: Sequence[EncodedPrompt], output_labels: bool = True, padding_side: PaddingSide = "left"
    ) -> BatchFeature:
        """Batches encoded prompts; returns the tensors that `apply_chat_template` returns.

        Tokens are padded on `padding_side`: on the left to generate, on the right to train, where causal attention
        hides the padding. Columns are always padded on the right.

        Raises:
            PromptError: no prompt, or something else. OptionError: another side.
        """
        if not is_list(prompts) or not prompts or not all(isinstance(prompt, EncodedPrompt) for prompt in prompts):
            raise PromptError(f"the prompts are {prompts!r:.60}; give a list of what encode_conversations returns")
        if padding_side not in PADDING_SIDES:
            raise OptionError(f"padding_side={padding_side!r}; {nearest(str(padding_side), PADDING_SIDES)}")
        return self._encoder.collate(prompts, output_labels, padding_side)

    def mask_last_text(self, prompt: EncodedPrompt) -> Tensor:
        """Returns the ids [T] with the text of the last user turn, except its speaker tag, replaced by padding.

        This is the unconditional prompt of classifier-free guidance.

        Raises:
            PromptError: the prompt has no user turn.
        """
        return self._encoder.mask_last_text(prompt)

    def check_conversation(self, conversation: Conversation) -> None:
        """Checks that a conversation can be rendered and encoded, without doing either; recordings are not opened.

        Raises:
            PromptError: a conversation that cannot be rendered.
            CodesError: unusable codes.
            TextError: a text that cannot be spoken (with phonemes).
        """
        messages = read_conversation(conversation)
        if self.text_frontend == "phonemes":
            template.check_texts(messages, check_phonemes)
        items = [item for message in messages for item in message.items if not isinstance(item, str)]
        for item in items:
            if source_key(item) == "codes":
                check_codes(item, self.config)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        output_labels: bool = False,
        sampling_rate: int | None = None,
        allow_private_urls: bool | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Encodes rendered prompts, for example from `apply_chat_template(..., tokenize=False)`.

        Args:
            text: one prompt or several; special tokens in them are parsed as tokens. Labels cover the assistant turns
                that the prompt closes.
            audio: one audio, or a list with one for each placeholder, in order over all prompts: an array in [-1, 1],
                a path or URL, a `Waveform`, or a dict like an audio item of a message.
            output_labels: whether to add labels.
            sampling_rate: rate of arrays, in Hz; 24000, the rate of the processor, when None.
            allow_private_urls: as in `RenderOptions`.
            return_tensors: only "pt".

        Returns:
            BatchFeature with input_ids [B, T], attention_mask [B, T], audio_input_ids [B, F, K] and
            audio_input_ids_mask [B, F], as `apply_chat_template` returns them; labels [B, T] and audio_labels
            [B, F, K] with `output_labels`.

        Raises:
            PromptError: no prompt, or a number of audios that differs from the number of placeholders.
            AudioError, CodesError: unusable audio or codes.
            CheckpointError: audio, but no audio tokenizer to encode it.

        Source: `HiggsAudioProcessor.__call__` in the published model card.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> prompt = "<|begin_of_text|><|audio_bos|><|AUDIO|><|audio_eos|><|eot_id|>"
        >>> second = np.zeros(24000, np.float32)  # 25 frames, and 9 more columns under the delay pattern
        >>> processor(prompt, audio=second, sampling_rate=24000).audio_input_ids.shape
        torch.Size([1, 34, 8])
        """
        if return_tensors != "pt":
            raise OptionError(f"{return_tensors=}; allowed: return_tensors='pt'")
        options = RenderOptions(sampling_rate=sampling_rate, allow_private_urls=allow_private_urls)
        return self.collate(self._encode(parse_prompts(text, audio), options), output_labels)

    def encode_audio(self, waveform: Waveform) -> np.ndarray:
        """Encodes a recording at any rate as codes, int64 [K, F].

        Raises:
            AudioError: too short, or not a `Waveform`.
            CheckpointError: the processor has no audio tokenizer.
        """
        check_waveform(waveform)
        return encode_waveform(self._codec(), waveform)

    def _render(self, conversations: Sequence[Any], options: RenderOptions) -> list[Sequence[Piece]]:
        starts = read_starts(options.start_index, len(conversations))
        return [
            template.render(
                read_conversation(messages, options.allow_special, options.style),
                add_generation_prompt=options.add_generation_prompt,
                force_audio=options.force_audio,
                start_index=start,
                text_frontend=to_phonemes if self.text_frontend == "phonemes" else None,
                style=options.style,
            )
            for messages, start in zip(conversations, starts, strict=True)
        ]

    def _encode(self, prompts: Sequence[Sequence[Piece]], options: RenderOptions) -> list[EncodedPrompt]:
        rate = self.sampling_rate if options.sampling_rate is None else options.sampling_rate
        check_count("sampling_rate", rate, MIN_RATE, MAX_RATE, "None for the processor's rate")
        limits = self.limits
        if options.allow_private_urls is not None:
            limits = replace(limits, allow_private_urls=options.allow_private_urls)
        audio_options = AudioItemOptions(self.config, self.encode_audio, rate, limits)
        encoded = []
        for pieces in prompts:
            audio = encode_audio_items([piece for piece in pieces if piece.kind == "audio"], audio_options)
            encoded.append(self._encoder.encode(pieces, audio, options.piecewise))
        return encoded

    # Responses.

    def get_prompt_len(self, input_ids: Tensor | Sequence[Any]) -> int:
        """Returns the number of tokens of a prompt [B, T] or [T], placeholders and padding included.

        Raises:
            PromptError: ids outside the tokenizer's vocabulary, or of another shape.
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
        """Decodes one generated sequence to audio and text.

        Args:
            decoder_text_ids: [T] or [1, T], prompt included.
            decoder_audio_ids: the generated segments, delayed columns [K, n] from the bos column on. The complete
                frames of each segment are decoded separately, and the samples are concatenated.
            prompt_token_length: number of tokens of the prompt, which is omitted from the text.
            skip_special_tokens: whether to omit special tokens, including placeholders, from the text.

        Returns:
            HiggsAudioResponse: `audio` float32 [S] in [-1, 1] at `sampling_rate` (24000 samples per second, 960 per
            frame), None if no segment has a complete frame; `generated_text` without the prompt.

        Raises:
            PromptError: several sequences (see `batch_decode`), or ids outside the vocabulary.
            CodesError: segments of another form or number of codebooks.
            OptionError: a prompt longer than the sequence.
            CheckpointError: codes, but no audio tokenizer to decode them.

        Source: `HiggsAudioProcessor.decode` in the published model card, which dropped the beginning of the text.

        >>> processor = HiggsAudioProcessor.from_pretrained("nano")
        >>> ids = processor.tokenizer.encode("prompt<|audio_out_bos|>text<|eot_id|>", add_special_tokens=False)
        >>> segment = torch.zeros(8, 2 + 9, dtype=torch.long)  # two frames under the delay pattern
        >>> for k in range(8):
        ...     segment[k, : k + 1], segment[k, k + 3 :] = 1024, 1025
        >>> response = processor.decode(torch.tensor([ids]), [segment], prompt_token_length=7)
        >>> response.generated_text, response.audio.shape
        ('text', (1920,))
        """
        ids = read_ids(decoder_text_ids, len(self.tokenizer))
        ids = ids[0] if ids.dim() == 2 and len(ids) == 1 else ids  # [T]
        if ids.dim() != 1:
            raise PromptError(f"decode got ids of shape {tuple(ids.shape)}; give one sequence, or use batch_decode")
        check_count("prompt_token_length", prompt_token_length, 0, len(ids))
        text = self.tokenizer.decode(ids[prompt_token_length:].tolist(), skip_special_tokens=skip_special_tokens)
        codes = read_segments(decoder_audio_ids, self.config.audio_num_codebooks, self.config.audio_codebook_size)
        samples = [decode_codes(self._codec(), segment) for segment in codes if segment.shape[1]]  # each [S]
        return HiggsAudioResponse(np.concatenate(samples) if samples else None, str(text), self.sampling_rate)

    def batch_decode(
        self,
        decoder_text_ids: Tensor | Sequence[Tensor | Sequence[int]],
        decoder_audio_ids: Sequence[Sequence[Tensor]],
        prompt_token_length: int = 0,
        skip_special_tokens: bool = True,
    ) -> list[HiggsAudioResponse]:
        """Decodes each row of ids [B, T] with its list of segments; see `decode` for the other arguments.

        Raises:
            PromptError: the numbers of rows and lists differ.
            PromptError, CodesError, OptionError, CheckpointError: as for `decode`.
        """
        rows = decoder_text_ids if is_list(decoder_text_ids) else read_ids(decoder_text_ids, len(self.tokenizer))
        if (isinstance(rows, Tensor) and rows.dim() != 2) or not is_list(decoder_audio_ids):
            raise PromptError("batch_decode takes ids [B, T] and a list with the segments of each row; see decode")
        if len(rows) != len(decoder_audio_ids):
            raise PromptError(f"{len(rows)} sequences and {len(decoder_audio_ids)} lists of segments; give one each")
        return [
            self.decode(ids, segments, prompt_token_length, skip_special_tokens)
            for ids, segments in zip(rows, decoder_audio_ids, strict=True)
        ]

    def save_audio(self, audio: Any, saving_path: Any, format: str | None = None) -> None:
        """Writes one waveform to a file, or a list of waveforms to a list of files. A file appears once it is complete.

        Args:
            audio: float [S] array or tensor at the processor's rate, or a list of them.
            saving_path: a path, or one for each waveform; its suffix determines the format.
            format: the format, if the suffix does not determine it.

        Raises:
            AudioError: the audio is None.
            PromptError: the numbers of waveforms and files differ.
            OptionError: no path, or an unknown format.
        """
        write_waveforms(audio, saving_path, self.sampling_rate, format)
