"""The language model: a Llama whose layers have a second feed-forward network for audio positions (DualFFN)."""

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, LlamaConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from typing_extensions import Unpack

from higgs_audio.config import HiggsAudioConfig, HiggsAudioEncoderConfig
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.errors import PromptError
from higgs_audio.generation import loop
from higgs_audio.generation.checks import audio_mask, check_audio_tower, check_columns
from higgs_audio.generation.options import GenerateOptions
from higgs_audio.generation.output import GenerateOutput
from higgs_audio.model.keywords import attention_options
from higgs_audio.model.layers import AudioEmbeddings, DualFFNLayer, RMSNorm, RotaryEmbedding, Route, make_route
from higgs_audio.model.losses import (
    check_labels,
    codebook_losses,
    place_audio_labels,
    select_labelled,
    text_loss_sum,
    weighted_mean,
)
from higgs_audio.model.outputs import HiggsAudioModelOutput, HiggsAudioOutput
from higgs_audio.model.pretrained import HiggsAudioPreTrainedModel
from higgs_audio.model.tower import AudioTower, FeatureProjector, check_feature_positions, real_features


class HiggsAudioModel(HiggsAudioPreTrainedModel):
    """The backbone: maps token ids and delayed codes to hidden states.

    Args:
        config: sizes and token ids.

    >>> model = HiggsAudioModel.from_pretrained(NANO)
    >>> placeholder = model.config.audio_out_token_idx  # stands for one column of 8 codes
    >>> ids, column = torch.tensor([[0, placeholder]]), torch.full((1, 1, 8), 1024)
    >>> model(input_ids=ids, audio_input_ids=column).last_hidden_state.shape
    torch.Size([1, 2, 320])
    """

    def __init__(self, config: HiggsAudioConfig) -> None:
        super().__init__(config)
        text = self.text_config
        text._attn_implementation = config._attn_implementation
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        dual = set(config.audio_dual_ffn_layers or ())
        self.layers = nn.ModuleList(DualFFNLayer(text, i, i in dual) for i in range(text.num_hidden_layers))
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(text)
        self.embed_audio_tokens = AudioEmbeddings(config, text.hidden_size)
        has_tower = not config.skip_audio_tower
        self.audio_tower = AudioTower(self.encoder_config) if has_tower else None
        self.audio_encoder_proj = FeatureProjector(self.encoder_config, text.hidden_size) if has_tower else None
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def text_config(self) -> LlamaConfig:
        """The configuration of the Llama backbone."""
        assert isinstance(self.config.text_config, LlamaConfig)
        return self.config.text_config

    @property
    def encoder_config(self) -> HiggsAudioEncoderConfig:
        """The configuration of the audio tower, for models that have one."""
        assert isinstance(self.config.audio_encoder_config, HiggsAudioEncoderConfig)
        return self.config.audio_encoder_config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_input_ids: Tensor | None = None,
        audio_input_ids_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        feature_positions: Tensor | None = None,
        **options: Unpack[FlashAttentionKwargs],
    ) -> HiggsAudioModelOutput:
        """Runs the backbone.

        Args:
            input_ids: `[B, T]`; the n-th position of a row whose id is one of `config.audio_placeholder_ids` is
                replaced by the row's n-th column of `audio_input_ids`. None for a step in which every position is
                audio.
            attention_mask: `[B, T_past + T]`, 1 = real, 0 = padding.
            audio_input_ids: delayed columns `[B, F, K]`, ids 0 to V + 1, padded on the right.
            audio_input_ids_mask: `[B, F]`, true = real; all real when None.
            position_ids: `[B, T]`; counted from the attention mask when None.
            past_key_values: a transformers cache, extended in place; created when None and `use_cache`.
            use_cache: whether to return a cache.
            output_hidden_states: whether to return the input of each layer and the last hidden state.
            input_features: log-mel windows `[N, mel bins, M]` of the whole batch, in the order of the rows; 100 frames
                per second, M at most `2 * max_source_positions` (3000).
            feature_attention_mask: `[N, M]`, 1 = a frame of the recording, 0 = padding after it; all real when None.
            feature_positions: `[B, T]`, true where an audio-in placeholder is replaced by a feature of the windows
                instead of a column. These positions use the modules for text.
            **options: passed to the attention function.

        Returns:
            HiggsAudioModelOutput, with `hidden_states` only if `output_hidden_states`.

        Raises:
            PromptError: neither ids nor columns, or placeholders that do not match the columns or the features.
            CodesError: columns of the wrong shape, type or range.

        Source: `HiggsAudioModel` of boson-ai/higgs-audio, with placeholders expanded beforehand.

        >>> model = HiggsAudioModel.from_pretrained(NANO)
        >>> model(input_ids=torch.tensor([[0, 40, 41]])).last_hidden_state.shape  # T = 3, D = 320
        torch.Size([1, 3, 320])
        """
        attention = attention_options(self, options)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        features = self._encode_features(input_ids, input_features, feature_attention_mask, feature_positions)
        columns = (audio_input_ids, audio_input_ids_mask)
        route, embeds = self.embed(input_ids, attention_mask, *columns, feature_positions, features)  # [B, T, D]
        mask = _causal_mask(self.text_config, embeds, attention_mask, past_key_values, position_ids)
        position_ids = _read_positions(position_ids, embeds, attention_mask, past_key_values)
        rotary = self.rotary_emb(position_ids, embeds.dtype)
        rows, states = route.gather(embeds), []
        for layer in self.layers:
            if output_hidden_states:
                states.append(route.scatter(rows))
            rows = layer(rows, route, rotary, mask, past_key_values, position_ids=position_ids, **attention)
        last = route.scatter(self.norm(rows))
        return HiggsAudioModelOutput(last, past_key_values, (*states, last) if output_hidden_states else None)

    def embed(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        columns: Tensor | None,
        columns_mask: Tensor | None,
        feature_positions: Tensor | None,
        features: Tensor | None,
    ) -> tuple[Route, Tensor]:
        """Returns the route of a batch and its embeddings `[B, T, D]`.

        Args:
            input_ids, attention_mask, feature_positions: as in `forward`.
            columns, columns_mask: `audio_input_ids` and its mask, as in `forward`.
            features: `[P, D]` encoded features for the positions that `feature_positions` marks.

        Raises:
            PromptError, CodesError: as for `forward`.
        """
        if columns is not None:
            check_columns(columns, self.config, with_range=input_ids is not None)
        if input_ids is None:
            if columns is None:
                raise PromptError("neither input_ids nor audio_input_ids; pass token ids, columns of codes, or both")
            return Route(columns.shape[0], 0), self.embed_audio_tokens(columns)
        audio = self.audio_mask(input_ids, feature_positions)  # [B, T]
        attended = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        route = make_route(audio, attended)
        embeds = self.embed_tokens(input_ids)
        if feature_positions is not None and features is not None:
            embeds = embeds.masked_scatter(feature_positions.bool()[..., None], features.to(embeds))
        if columns is not None:
            all_real = torch.ones(columns.shape[:2], dtype=torch.bool, device=columns.device)
            real = all_real if columns_mask is None else columns_mask.bool()
            _check_counts(audio, real)
            embeds = embeds.masked_scatter(audio[..., None], self.embed_audio_tokens(columns[real]).to(embeds.dtype))
        elif bool(audio.any()):
            raise PromptError(f"{int(audio.sum())} audio placeholders but no audio_input_ids; pass one column for each")
        return route, embeds

    def _encode_features(
        self, input_ids: Tensor | None, mels: Tensor | None, mels_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor | None:
        """Returns the embeddings `[P, D]` for the feature positions; None if the batch has no features."""
        if mels is None and (positions is None or not bool(positions.any())):
            return None
        if mels is None or positions is None or input_ids is None or positions.shape != input_ids.shape:
            raise PromptError(
                "input_ids, input_features and feature_positions must be passed together, and feature_positions must "
                "have the shape of input_ids; pass all tensors that the processor returns"
            )
        is_audio_in = input_ids == self.config.audio_in_token_idx
        if bool((positions.bool() & ~is_audio_in).any()):
            audio_in = self.config.audio_in_token_idx
            raise PromptError(f"feature_positions marks ids other than {audio_in} (audio in); mark only those")
        features, counts = self.audio_features(mels, mels_mask)
        check_feature_positions(positions, is_audio_in, counts)
        return features

    def audio_features(
        self, input_features: Tensor, feature_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encodes log-mel windows with the audio tower.

        Args:
            input_features, feature_attention_mask: as in `forward`.

        Returns:
            Embeddings `[P, D]` of all windows, concatenated without padding, 25 per second; and the number of real mel
            frames of each window, `[N]`.

        Raises:
            PromptError: windows of the wrong shape, or a model without the audio tower.
        """
        check_audio_tower(self.config)
        assert self.audio_tower is not None and self.audio_encoder_proj is not None
        counts = self.audio_tower.count(input_features, feature_attention_mask)  # [N]
        features = real_features(self.audio_tower(input_features, counts), counts)  # [P, D_tower]
        return self.audio_encoder_proj(features), counts

    def audio_mask(self, input_ids: Tensor, feature_positions: Tensor | None = None) -> Tensor:
        """Returns `[B, T]`, true where a token id is the placeholder of a column of codes."""
        audio = audio_mask(input_ids, self.config)
        return audio if feature_positions is None else audio & ~feature_positions.bool()


def _check_counts(audio: Tensor, real: Tensor) -> None:
    """Raises PromptError unless every row has as many placeholders as columns.

    Without the check, a row with one column too few would use a column of the next row.
    """
    placeholders, columns = audio.sum(1).tolist(), real.sum(1).tolist()
    if placeholders != columns:
        raise PromptError(
            f"audio placeholders per row {placeholders}, columns of codes per row {columns}: they must be equal"
        )


def _causal_mask(
    config: LlamaConfig,
    embeds: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    position_ids: Tensor | None,
) -> object:
    """Returns the causal mask in the format of the attention backend.

    Args:
        config: config of the backbone, which names the backend.
        embeds: `[B, T, D]`.
        attention_mask: `[B, T_past + T]`.
        cache: keys and values of the past positions.
        position_ids: `[B, T]` as passed by the caller: where they restart, a sequence of a packed row begins.
    """
    needs_mask = cache is not None or not _is_right_padded(attention_mask)
    # Passed by position: the fourth parameter is `past_key_values` before transformers 5.24 and `cache` since then.
    return create_causal_mask(config, embeds, attention_mask if needs_mask else None, cache, position_ids)


def _is_right_padded(mask: Tensor | None) -> bool:
    """Returns whether every row of `mask [B, T]` is ones, then zeros.

    The causal mask hides such padding from real positions; without another mask, a kernel skips half of the products.
    """
    return mask is None or bool((mask[:, 1:] <= mask[:, :-1]).all())


def _read_positions(
    position_ids: Tensor | None, embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None
) -> Tensor:
    """Returns `position_ids [B, T]`, or a count of real positions if None, so that left padding has no effect."""
    length = embeds.shape[1]
    if position_ids is not None:
        return position_ids
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    past = 0 if cache is None else int(cache.get_seq_length())
    return (torch.arange(length, device=embeds.device) + past).expand(embeds.shape[0], -1)


class HiggsAudioForConditionalGeneration(HiggsAudioPreTrainedModel):
    """The backbone with two heads: one predicts the next text token, the other the next column of K codes.

    Args:
        config: sizes and token ids.

    >>> processor = HiggsAudioProcessor.from_pretrained(NANO)
    >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
    >>> audio = {"type": "audio", "codes": torch.zeros(8, 5, dtype=torch.long)}  # [K, F]
    >>> conversation = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": [audio]}]
    >>> inputs = processor.apply_chat_template(conversation, add_generation_prompt=False)  # with labels
    >>> out = model(**inputs)
    >>> out.logits.shape[2:], out.codebook_losses.shape
    (torch.Size([8, 1026]), torch.Size([8]))
    >>> out.loss.backward()

    With the audio tower (`config.skip_audio_tower` False), the model answers questions about audio in user turns:
    `{"role": "user", "content": ["What is said?", {"type": "audio", "path": "question.wav"}]}`.
    """

    def __init__(self, config: HiggsAudioConfig) -> None:
        super().__init__(config)
        self.model = HiggsAudioModel(config)
        width = self.model.text_config.hidden_size
        vocabulary = self.model.text_config.vocab_size
        self.text_lm_head = nn.Linear(width, vocabulary, bias=False) if config.use_text_head else None
        self.audio_lm_head = nn.Linear(width, config.audio_num_codebooks * config.codebook_rows, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_input_ids: Tensor | None = None,
        audio_input_ids_mask: Tensor | None = None,
        labels: Tensor | None = None,
        audio_labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
        codebook_weights: Tensor | None = None,
        only_loss: bool = False,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        feature_positions: Tensor | None = None,
        with_text: bool = True,
        **options: Unpack[FlashAttentionKwargs],
    ) -> HiggsAudioOutput:
        """Runs the backbone and both heads; see `HiggsAudioModel.forward` for the other arguments.

        Args:
            labels: `[B, T]` text token ids, -100 where untrained; position t is trained to predict label t + 1.
            audio_labels: `[B, F, K]`, the delayed codes of each column itself, not shifted, -100 where untrained.
            logits_to_keep: number of last positions to compute logits for; 0 = all.
            codebook_weights: `[K]`, weights of the codebooks in `audio_loss`; equal when None.
            only_loss: for training: computes logits at labeled positions only, and returns no logits.
            with_text: whether to compute `text_logits`.

        Returns:
            HiggsAudioOutput. The losses are None without labels.

        Raises:
            PromptError, CodesError: as `HiggsAudioModel.forward`, and labels of another shape than their ids.

        Source: the losses of the model card: text, plus the mean over codebooks, with one eos in each.

        >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
        >>> model(input_ids=torch.tensor([[0, 40, 41]])).logits.shape
        torch.Size([1, 3, 8, 1026])
        """
        attention = attention_options(self, options)
        check_labels(labels, input_ids, audio_labels, audio_input_ids)
        out = self.model(
            *(input_ids, attention_mask, audio_input_ids, audio_input_ids_mask, position_ids, past_key_values),
            *(use_cache, output_hidden_states, input_features, feature_attention_mask, feature_positions),
            **attention,
        )
        hidden = out.last_hidden_state  # [B, T, D]
        result = HiggsAudioOutput(cache=out.cache, hidden_states=out.hidden_states)
        if not only_loss:
            kept = hidden[:, -logits_to_keep:]  # all positions for 0
            result["logits"] = self.audio_logits(kept)
            if with_text and self.text_lm_head is not None:
                result["text_logits"] = self.text_lm_head(kept)
        audio = None if audio_labels is None else self.model.audio_mask(input_ids, feature_positions)  # [B, T]
        self._add_losses(result, hidden, labels, audio_labels, audio, audio_input_ids_mask, codebook_weights)
        return result

    def _add_losses(
        self,
        result: HiggsAudioOutput,
        hidden: Tensor,
        labels: Tensor | None,
        audio_labels: Tensor | None,
        audio: Tensor | None,
        columns_mask: Tensor | None,
        codebook_weights: Tensor | None,
    ) -> None:
        """Adds the losses for `labels [B, T]` and `audio_labels [B, F, K]`; `audio [B, T]` marks their placeholders."""
        if labels is not None:
            result["text_loss"] = self._text_loss(hidden, labels)
        if audio_labels is not None:
            assert audio is not None
            placed = place_audio_labels(audio, audio_labels, columns_mask)  # [B, T, K]
            result["codebook_losses"] = self._codebook_losses(hidden, placed)
            result["audio_loss"] = weighted_mean(result["codebook_losses"], codebook_weights)
        losses = [result[name] for name in ("text_loss", "audio_loss") if result.get(name) is not None]
        if losses:
            result["loss"] = torch.stack(losses).sum()

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """Applies the audio head: hidden states `[..., D]` to logits `[..., K, V + 2]`."""
        return self.audio_lm_head(hidden).unflatten(-1, (self.config.audio_num_codebooks, -1))

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        audio_input_ids: Tensor | None = None,
        audio_input_ids_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        feature_positions: Tensor | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateOutput:
        """Generates text tokens and delayed codes; `higgs_audio.generation.generate` documents all arguments.

        Args:
            input_ids: `[B, T]`. It and the other tensors are passed as the processor returns them, labels included.
            **options: options of `GenerateOptions`: max_new_tokens (steps; 25 per second of audio), max_length,
                do_sample, temperature, top_k, top_p, seed and others.

        Returns:
            GenerateOutput: `[0]` is sequences `[B, T']`, `[1]` the segments of delayed columns `[K, n]` of each row;
            for a batch of one, the list of segments of its row.

        Raises:
            OptionError, PromptError, CodesError, NumericsError: see `higgs_audio.generation.generate`.

        Source: `generate` of boson-ai/higgs-audio and the call in the model card.

        >>> processor = HiggsAudioProcessor.from_pretrained(NANO)
        >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
        >>> inputs = processor.apply_chat_template([{"role": "user", "content": "Hi."}], force_audio=True)
        >>> outputs = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        >>> outputs[0].shape[1] - inputs.input_ids.shape[1], outputs[1][0].shape
        (12, torch.Size([8, 12]))
        """
        columns = (audio_input_ids, audio_input_ids_mask)
        features = (input_features, feature_attention_mask, feature_positions)
        return loop.generate(self, input_ids, attention_mask, *columns, *features, **options)

    def _text_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy over the labeled tokens."""
        if self.text_lm_head is None:
            raise PromptError("labels for text, but the checkpoint has no text head; pass audio_labels alone")
        selected, targets = select_labelled(hidden, labels)
        return text_loss_sum(self.text_lm_head(selected).float(), targets) / max(1, len(targets))

    def _codebook_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy over the labeled cells of each codebook, `[K]`."""
        selected, targets = select_labelled(hidden, labels)
        losses = codebook_losses(self.audio_logits(selected).float(), targets)
        return losses.sum(0) / (targets != IGNORE_INDEX).sum(0).clamp(min=1)
