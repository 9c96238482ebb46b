"""The language model: a Llama trunk whose layers have a second feed-forward network for audio positions (DualFFN)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, LlamaConfig
from transformers.masking_utils import create_causal_mask

from higgs_audio.config import HiggsAudioConfig, HiggsAudioEncoderConfig
from higgs_audio.errors import CodesError, PromptError
from higgs_audio.generation.checks import audio_mask, check_columns
from higgs_audio.generation.loop import generate
from higgs_audio.model.layers import AudioEmbeddings, DualFFNLayer, RMSNorm, RotaryEmbedding, Route, route
from higgs_audio.model.outputs import HiggsAudioModelOutput, HiggsAudioOutput
from higgs_audio.model.pretrained import HiggsAudioPreTrainedModel
from higgs_audio.model.tower import AudioTower, FeatureProjector, check_places, real_features

IGNORED = -100  # label of a position that is not trained


class HiggsAudioModel(HiggsAudioPreTrainedModel):
    """The trunk: token ids and delayed codes to hidden states.

    Args:
        config: sizes and token ids.

    >>> HiggsAudioModel.from_pretrained(NANO).config.audio_num_codebooks
    8
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
        hears = not config.skip_audio_tower
        self.audio_tower = AudioTower(self.encoder_config) if hears else None
        self.audio_encoder_proj = FeatureProjector(self.encoder_config, text.hidden_size) if hears else None
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def text_config(self) -> LlamaConfig:
        """The trunk's own configuration."""
        assert isinstance(self.config.text_config, LlamaConfig)
        return self.config.text_config

    @property
    def encoder_config(self) -> HiggsAudioEncoderConfig:
        """The audio tower's configuration, where there is one."""
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
        **options: Any,
    ) -> HiggsAudioModelOutput:
        """Runs the trunk.

        Args:
            input_ids: `[B, T]`; the n-th position of a row whose id is one of `config.audio_placeholder_ids` takes
                the row's n-th column of `audio_input_ids`. None for a step in which every position is audio.
            attention_mask: `[B, T_past + T]`, 1 = real, 0 = padding.
            audio_input_ids: delayed columns `[B, F, K]`, ids 0 to V + 1, padded on the right.
            audio_input_ids_mask: `[B, F]`, true = real; all real when None.
            position_ids: `[B, T]`; counted from the attention mask when None.
            past_key_values: a transformers cache, extended in place; made when None and `use_cache`.
            input_features: log-mel windows `[N, mel bins, M]` of the whole batch, in the order of the rows; 100 frames
                a second, M at most `2 * max_source_positions` (3000).
            feature_attention_mask: `[N, M]`, 1 = a frame of the sound, 0 = padding behind it; all real when None.
            feature_positions: `[B, T]`, true where an audio-in placeholder takes a feature of the windows, and no
                column. These positions take the text path.

        Returns:
            `last_hidden_state [B, T, D]`, `cache`, and with `output_hidden_states` each layer's input and
            the final states.

        Raises:
            PromptError: neither ids nor columns, or placeholders that do not match the columns or the features.
            CodesError: columns of another shape or range.

        Source: `HiggsAudioModel` of boson-ai/higgs-audio, with placeholders expanded beforehand.

        >>> model = HiggsAudioModel.from_pretrained(NANO)
        >>> model(input_ids=torch.tensor([[0, 40, 41]])).last_hidden_state.shape  # T = 3, D = 320
        torch.Size([1, 3, 320])
        >>> placeholder = model.config.audio_out_token_idx  # takes the place of one column of 8 codes
        >>> ids, column = torch.tensor([[0, placeholder]]), torch.full((1, 1, 8), 1024)
        >>> model(input_ids=ids, audio_input_ids=column).last_hidden_state.shape
        torch.Size([1, 2, 320])
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        heard = self._hear(input_ids, input_features, feature_attention_mask, feature_positions)
        codes = (audio_input_ids, audio_input_ids_mask)
        way, embeds = self.embed(input_ids, attention_mask, *codes, feature_positions, heard)  # [B, T, D]
        packed = position_ids  # positions that begin anew say where the sequences of a packed row begin
        if position_ids is None:
            position_ids = _positions(embeds, attention_mask, past_key_values)
        # By position: the fourth parameter is `past_key_values` before transformers 5.24 and `cache` from there on.
        hiding = None if past_key_values is None and padded_behind(attention_mask) else attention_mask
        mask = create_causal_mask(self.text_config, embeds, hiding, past_key_values, packed)
        rotary = self.rotary_emb(position_ids, embeds.dtype)
        rows, states = way.take(embeds), []
        for layer in self.layers:
            if output_hidden_states:
                states.append(way.put(rows))
            rows = layer(rows, way, rotary, mask, past_key_values, position_ids=position_ids, **options)
        last = way.put(self.norm(rows))
        hidden_states = (*states, last) if output_hidden_states else None
        return HiggsAudioModelOutput(last, past_key_values, hidden_states)

    def embed(
        self,
        input_ids: Tensor | None,
        attended: Tensor | None,
        codes: Tensor | None,
        codes_mask: Tensor | None,
        places: Tensor | None,
        heard: Tensor | None,
    ) -> tuple[Route, Tensor]:
        """The route of the batch and its embeddings `[B, T, D]`: `forward`'s arguments, what is heard read already.

        `heard [P, D]` takes the positions that `places [B, T]` marks.
        """
        if codes is not None:
            check_columns(codes, self.config, with_range=input_ids is not None)
        if input_ids is None:
            if codes is None:
                raise PromptError("neither input_ids nor audio_input_ids: give token ids, columns of codes, or both")
            return Route(codes.shape[0], 0), self.embed_audio_tokens(codes)
        audio = self.audio_mask(input_ids, places)  # [B, T]
        now = None if attended is None else attended[:, -input_ids.shape[1] :]
        way = route(audio, now)
        embeds = self.embed_tokens(input_ids)
        if places is not None and heard is not None:
            embeds = embeds.masked_scatter(places.bool()[..., None], heard.to(embeds))
        if codes is not None:
            real = (
                torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
                if codes_mask is None
                else codes_mask.bool()
            )
            _check_counts(audio, real)
            embeds = embeds.masked_scatter(audio[..., None], self.embed_audio_tokens(codes[real]).to(embeds.dtype))
        elif bool(audio.any()):
            raise PromptError(f"{int(audio.sum())} audio placeholders and no audio_input_ids to fill them")
        return way, embeds

    def _hear(
        self, input_ids: Tensor | None, mels: Tensor | None, mels_mask: Tensor | None, places: Tensor | None
    ) -> Tensor | None:
        """The embeddings `[P, D]` that the feature positions take; None where the batch has none."""
        if mels is None and (places is None or not bool(places.any())):
            return None
        if mels is None or places is None or input_ids is None or places.shape != input_ids.shape:
            raise PromptError(
                "input_ids, input_features and feature_positions belong together, the last of the first one's shape; "
                "pass all that the processor returns"
            )
        if bool((places.bool() & (input_ids != self.config.audio_in_token_idx)).any()):
            raise PromptError(f"feature_positions marks ids other than {self.config.audio_in_token_idx}, audio in")
        features, counts = self.audio_features(mels, mels_mask)
        check_places(places, input_ids == self.config.audio_in_token_idx, counts)
        return features

    def audio_features(
        self, input_features: Tensor, feature_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is heard in log-mel windows.

        Args:
            input_features, feature_attention_mask: as in `forward`.

        Returns:
            Embeddings `[P, D]` of all windows one after the other, padding left out, 25 a second; and the real mel
            frames of each window `[N]`.

        Raises:
            PromptError: windows that do not fit, or a model without the audio tower.
        """
        if self.audio_tower is None or self.audio_encoder_proj is None:
            raise PromptError("input_features for a model without audio tower (skip_audio_tower=True); give codes")
        counts = self.audio_tower.count(input_features, feature_attention_mask)  # [N]
        features = real_features(self.audio_tower(input_features, counts), counts)  # [P, D_tower]
        return self.audio_encoder_proj(features), counts

    def audio_mask(self, input_ids: Tensor, feature_positions: Tensor | None = None) -> Tensor:
        """True where a token id is a placeholder that takes a column of codes, `[B, T]`."""
        audio = audio_mask(input_ids, self.config)
        return audio if feature_positions is None else audio & ~feature_positions.bool()


def _check_counts(audio: Tensor, real: Tensor) -> None:
    """Every row has as many placeholders as columns; a shift by one would go unheard until much later."""
    wanted, given = audio.sum(1).tolist(), real.sum(1).tolist()
    if wanted != given:
        raise PromptError(f"audio placeholders per row {wanted}, columns of codes per row {given}: they must be equal")


def padded_behind(attended: Tensor | None) -> bool:
    """Whether `attended [B, T]` is 1 and then 0: being causal hides that, and a kernel skips half of the square."""
    return attended is None or bool((attended[:, 1:] <= attended[:, :-1]).all())


def _positions(embeds: Tensor, attended: Tensor | None, cache: Cache | None) -> Tensor:
    """Position ids `[B, T]`: counted over real positions, so that left padding changes nothing."""
    length = embeds.shape[1]
    if attended is not None:
        return (attended.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    seen = 0 if cache is None else int(cache.get_seq_length())
    return (torch.arange(length, device=embeds.device) + seen).expand(embeds.shape[0], -1)


class HiggsAudioForConditionalGeneration(HiggsAudioPreTrainedModel):
    """The trunk with its two heads: the next text token, and the next column of K codes.

    Args:
        config: sizes and token ids.

    >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
    >>> model.audio_lm_head.out_features == 8 * 1026
    True

    With the audio tower (`config.skip_audio_tower` False) it answers in text what it hears in a user turn:
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
        **options: Any,
    ) -> HiggsAudioOutput:
        """Runs the trunk and both heads; see `HiggsAudioModel.forward` for the inputs.

        Args:
            labels: `[B, T]` text token ids, -100 where untrained; position t is trained to predict label t + 1.
            audio_labels: `[B, F, K]`, each column's own delayed codes, -100 where untrained; aligned with
                `audio_input_ids`, shifted here, once.
            logits_to_keep: last positions to compute logits for; 0 = all.
            codebook_weights: `[K]`, weights of the codebooks in `audio_loss`; equal when None.
            only_loss: compute logits at labelled positions alone and return none (for training).
            with_text: compute `text_logits`, which a step whose rows are all in audio has no use for.

        Returns:
            HiggsAudioOutput. The loss is None without labels.

        Raises:
            PromptError, CodesError: as `HiggsAudioModel.forward`, and labels of another shape than what they label.

        Source: the losses of the model's page: text plus the mean over codebooks, one eos of each trained.

        >>> processor = HiggsAudioProcessor.from_pretrained(NANO)
        >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
        >>> spoken = {"type": "audio", "codes": torch.zeros(8, 5, dtype=torch.long)}  # [K, F]
        >>> conversation = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": [spoken]}]
        >>> inputs = processor.apply_chat_template(conversation, add_generation_prompt=False)
        >>> out = model(**inputs)
        >>> out.logits.shape[2:], out.codebook_losses.shape
        (torch.Size([8, 1026]), torch.Size([8]))
        >>> out.loss.backward()
        """
        _check_labels(labels, input_ids, audio_labels, audio_input_ids)
        out = self.model(
            input_ids,
            attention_mask,
            audio_input_ids,
            audio_input_ids_mask,
            position_ids,
            past_key_values,
            use_cache,
            output_hidden_states,
            input_features,
            feature_attention_mask,
            feature_positions,
            **options,
        )
        hidden = out.last_hidden_state  # [B, T, D]
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        result = HiggsAudioOutput(cache=out.cache, hidden_states=out.hidden_states)
        if not only_loss:
            result["logits"] = self.audio_logits(kept)
            if with_text and self.text_lm_head is not None:
                result["text_logits"] = self.text_lm_head(kept)
        if labels is not None:
            result["text_loss"] = self._text_loss(hidden, labels)
        if audio_labels is not None:
            assert input_ids is not None
            audio = self.model.audio_mask(input_ids, feature_positions)
            placed = _place(audio, audio_labels, audio_input_ids_mask)  # [B, T, K]
            result["codebook_losses"] = self._codebook_losses(hidden, placed)
            result["audio_loss"] = _weighted_mean(result["codebook_losses"], codebook_weights)
        losses = [result[name] for name in ("text_loss", "audio_loss") if result.get(name) is not None]
        if losses:
            result["loss"] = torch.stack(losses).sum()
        return result

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` to `[..., K, V + 2]`."""
        return self.audio_lm_head(hidden).unflatten(-1, (self.config.audio_num_codebooks, -1))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates text tokens and delayed codes.

        Args:
            *args, **kwargs: input_ids [B, T], attention_mask [B, T], audio_input_ids [B, F, K], audio_input_ids_mask
                [B, F] as the processor returns them, labels too; max_new_tokens (steps, 25 to a second of sound),
                max_length, do_sample, temperature, top_k, top_p, seed and the rest of the options of
                `higgs_audio.generation.loop.generate`, which says more.

        Returns:
            GenerateOutput: `[0]` is sequences [B, T'], `[1]` the segments of delayed columns [K, n], for a batch of
            one that row's list itself.

        Raises:
            OptionError, PromptError, CodesError, NumericsError: see `higgs_audio.generation.loop.generate`.

        Source: `generate` of boson-ai/higgs-audio and the call of the model's page.

        >>> processor = HiggsAudioProcessor.from_pretrained(NANO)
        >>> model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
        >>> inputs = processor.apply_chat_template([{"role": "user", "content": "Hi."}], force_audio=True)
        >>> outputs = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        >>> outputs[0].shape[1] - inputs.input_ids.shape[1], outputs[1][0].shape
        (12, torch.Size([8, 12]))
        """
        return generate(self, *args, **kwargs)

    def _text_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled tokens, each predicted one position earlier."""
        if self.text_lm_head is None:
            raise PromptError("labels for text, and the checkpoint has no text head; train with audio_labels alone")
        wanted = labels[:, 1:]
        rows = (wanted != IGNORED).nonzero(as_tuple=True)
        logits = self.text_lm_head(hidden[:, :-1][rows]).float()  # [M, vocabulary]
        return F.cross_entropy(logits, wanted[rows], reduction="sum") / max(1, len(rows[0]))

    def _codebook_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each codebook, `[K]`, each column predicted one position earlier."""
        wanted = labels[:, 1:]
        rows = (wanted != IGNORED).any(-1).nonzero(as_tuple=True)
        logits, targets = self.audio_logits(hidden[:, :-1][rows]).float(), wanted[rows]  # [M, K, V + 2], [M, K]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        counts = (targets != IGNORED).sum(0).clamp(min=1)
        return losses.view(targets.shape).sum(0) / counts


def _check_labels(
    labels: Tensor | None, input_ids: Tensor | None, audio_labels: Tensor | None, codes: Tensor | None
) -> None:
    """Raises PromptError or CodesError where labels are of another shape than what they label."""
    if input_ids is None and (labels is not None or audio_labels is not None):
        raise PromptError("labels without input_ids: give the token ids, whose placeholders say where columns stand")
    if labels is not None and input_ids is not None and labels.shape != input_ids.shape:
        raise PromptError(f"labels {tuple(labels.shape)} for input_ids {tuple(input_ids.shape)}: give one for each id")
    if audio_labels is None:
        return
    wanted = None if codes is None else tuple(codes.shape)
    if tuple(audio_labels.shape) != wanted:
        raise CodesError(
            f"audio_labels {tuple(audio_labels.shape)} for audio_input_ids {wanted}: give one for each code, -100 "
            "where it is not trained"
        )


def _place(audio: Tensor, audio_labels: Tensor, codes_mask: Tensor | None) -> Tensor:
    """Audio labels `[B, F, K]` at the placeholders `audio [B, T]` of their columns, `[B, T, K]`, -100 elsewhere."""
    placed = audio_labels.new_full((*audio.shape, audio_labels.shape[-1]), IGNORED)
    placed[audio] = audio_labels.flatten(0, 1) if codes_mask is None else audio_labels[codes_mask.bool()]
    return placed


def _weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of `losses [K]`, by `weights [K]` where given."""
    if weights is None:
        return losses.mean()
    weights = weights.to(losses)
    return (losses * weights).sum() / weights.sum()
