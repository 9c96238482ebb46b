"""Pieces of prompts and their codes -> tensors of the language model. Here, and only here, codes [K, F] become columns
[F, K]."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchFeature, PreTrainedTokenizerBase

from higgs_audio import special_tokens
from higgs_audio.delay import apply_delay, delay_labels
from higgs_audio.errors import CheckpointError, PromptError
from higgs_audio.model.tower import num_features
from higgs_audio.prompt.template import Piece

IGNORE = -100  # the label of what is not trained


@dataclass(frozen=True)
class AudioInput:
    """What one placeholder stands for: codes, a window's features for the audio tower, or the latter and then codes."""

    codes: Tensor | None = None  # [K, F]
    mels: Tensor | None = None  # [mel bins, M]
    num_mels: int = 0  # real ones; padding behind them


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, unpadded."""

    input_ids: Tensor  # [T]
    labels: Tensor  # [T]
    columns: Tensor  # [F, K] delayed columns of all its audio
    column_labels: Tensor  # [F, K]
    is_feature: Tensor  # [T] bool, where a placeholder takes a feature of the audio tower
    windows: Sequence[AudioInput]  # those with mels, in order


@dataclass
class _Draft:
    """A row being written, left to right."""

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)  # [L, K] of each audio
    column_labels: list[Tensor] = field(default_factory=list)  # [L, K] of each audio
    is_feature: list[bool] = field(default_factory=list)
    windows: list[AudioInput] = field(default_factory=list)

    def add(self, ids: Sequence[int], trained: Sequence[bool], is_feature: bool = False) -> None:
        """The next tokens."""
        self.ids += ids
        self.trained += trained
        self.is_feature += [is_feature] * len(ids)


@dataclass(frozen=True)
class PromptEncoder:
    """Pieces -> `EncodedPrompt` -> batch, for one text tokenizer and one number and size of codebooks."""

    tokenizer: PreTrainedTokenizerBase
    num_codebooks: int
    codebook_size: int

    @cached_property
    def ids(self) -> dict[str, int]:
        """Special token -> id.

        Raises:
            CheckpointError: the tokenizer does not have one of them.
        """
        vocabulary = self.tokenizer.get_vocab()
        if missing := [token for token in special_tokens.SPECIAL_TOKENS if token not in vocabulary]:
            raise CheckpointError(f"the tokenizer has no token {missing[0]}; use the one of a Higgs Audio checkpoint")
        return {token: vocabulary[token] for token in special_tokens.SPECIAL_TOKENS}

    @property
    def markers(self) -> tuple[int, int]:
        """Stream bos and stream eos."""
        return self.codebook_size, self.codebook_size + 1

    def encode(
        self, pieces: Sequence[Piece], sounds: Sequence[Sequence[AudioInput]], piecewise: bool = False
    ) -> EncodedPrompt:
        """One prompt; every audio's placeholder is repeated once per feature, then once per column.

        Args:
            pieces: the prompt.
            sounds: what stands for each audio piece, in order. From its second window on, each gets tokens of its own
                that open and close it.
            piecewise: tokenize each text by itself instead of neighbouring texts together.
        """
        draft, remaining = _Draft(), iter(sounds)
        for group in _groups(pieces, piecewise):
            first = group[0]
            if first.kind == "audio":
                self._add_sound(draft, first, next(remaining))
            elif first.kind == "special":
                draft.add([self.ids[first.content]], [first.trained])
            else:
                draft.add(*self._encode_text(group))
        input_ids = torch.tensor(draft.ids)  # [T]
        labels = input_ids.masked_fill(~torch.tensor(draft.trained), IGNORE)  # [T]
        silent = torch.zeros(0, self.num_codebooks, dtype=torch.long)
        columns, column_labels = torch.cat([silent, *draft.columns]), torch.cat([silent, *draft.column_labels])
        return EncodedPrompt(input_ids, labels, columns, column_labels, torch.tensor(draft.is_feature), draft.windows)

    def _add_sound(self, draft: _Draft, piece: Piece, sound: Sequence[AudioInput]) -> None:
        """The windows of an audio, whose first opening and last closing token are pieces of the prompt."""
        for number, heard in enumerate(sound):
            if number:
                draft.add([self.ids[special_tokens.AUDIO_EOS], self.ids[special_tokens.AUDIO_BOS]], [piece.trained] * 2)
            if heard.mels is not None:
                features = [self.ids[piece.content]] * num_features(heard.num_mels)
                draft.windows.append(heard)
                draft.add(features, [False] * len(features), is_feature=True)
            if heard.codes is not None:
                self._add_columns(draft, piece, heard.codes)

    def _add_columns(self, draft: _Draft, piece: Piece, codes: Tensor) -> None:
        """The last K - 1 placeholders of an assistant segment are delay tokens."""
        bos, eos = self.markers
        columns = apply_delay(codes, bos, eos).T  # [L, K]
        labels = delay_labels(codes, eos, IGNORE).T  # [L, K]
        draft.columns.append(columns)
        draft.column_labels.append(labels if piece.trained else torch.full_like(labels, IGNORE))
        num_delay = self.num_codebooks - 1 if piece.content == special_tokens.AUDIO_OUT else 0
        ids = [self.ids[piece.content]] * (len(columns) - num_delay) + [
            self.ids[special_tokens.AUDIO_DELAY]
        ] * num_delay
        draft.add(ids, [False] * len(ids))

    def _encode_text(self, group: Sequence[Piece]) -> tuple[list[int], list[bool]]:
        """Ids of neighbouring texts read as one, and which are trained: those that reach into a trained text.

        The untrained text of such a group, the blank line of a header, comes first.
        """
        text = "".join(piece.content for piece in group)
        start = sum(len(piece.content) for piece in group if not piece.trained)
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
        typed = set(read["input_ids"]) & set(self.ids.values())
        if typed:  # a tokenizer whose special tokens are not marked as such
            raise PromptError(f"the tokenizer reads token {min(typed)} in the text {text!r:.60}; take it out")
        return list(read["input_ids"]), [end > start for _, end in read["offset_mapping"]]

    def collate(self, rows: Sequence[EncodedPrompt], output_labels: bool) -> BatchFeature:
        """Rows of any lengths -> one batch, tokens padded on the left, columns on the right."""
        num_tokens = max(len(row.input_ids) for row in rows)
        num_columns = max(len(row.columns) for row in rows)
        padding = self.tokenizer.pad_token_id
        padding = self.ids[special_tokens.END_OF_TEXT] if padding is None else padding

        def left(values: Tensor, fill: int) -> Tensor:  # [t] -> [T]
            return pad(values, (num_tokens - len(values), 0), value=fill)

        def right(values: Tensor, fill: int) -> Tensor:  # [f, K] -> [F, K]
            return pad(values, (0, 0, 0, num_columns - len(values)), value=fill)

        lengths = torch.tensor([len(row.columns) for row in rows])  # [B]
        features = {
            "input_ids": torch.stack([left(row.input_ids, padding) for row in rows]),  # [B, T]
            "attention_mask": torch.stack([left(torch.ones_like(row.input_ids), 0) for row in rows]),  # [B, T]
            "audio_input_ids": torch.stack([right(row.columns, self.markers[1]) for row in rows]),  # [B, F, K]
            "audio_input_ids_mask": torch.arange(num_columns)[None] < lengths[:, None],  # [B, F]
        }
        if output_labels:
            features["labels"] = torch.stack([left(row.labels, IGNORE) for row in rows])  # [B, T]
            features["audio_labels"] = torch.stack([right(row.column_labels, IGNORE) for row in rows])  # [B, F, K]
        if windows := [window for row in rows for window in row.windows]:
            features |= _stack_windows(windows)
            features["feature_positions"] = torch.stack([left(row.is_feature, 0) for row in rows])  # [B, T]
        return BatchFeature(features)


def _stack_windows(windows: Sequence[AudioInput]) -> dict[str, Tensor]:
    """The windows of a batch and which of their frames are real."""
    mels = torch.stack([window.mels for window in windows if window.mels is not None])  # [N, mel bins, M]
    counts = torch.tensor([window.num_mels for window in windows])  # [N]
    return {"input_features": mels, "feature_attention_mask": torch.arange(mels.shape[2]) < counts[:, None]}  # [N, M]


def _groups(pieces: Sequence[Piece], piecewise: bool) -> Iterator[list[Piece]]:
    """What is tokenized together: neighbouring texts, unless `piecewise`; everything else by itself."""
    for is_text, run in groupby(pieces, key=lambda piece: piece.kind == "text"):
        if is_text and not piecewise:
            yield list(run)
        else:
            yield from ([piece] for piece in run)
