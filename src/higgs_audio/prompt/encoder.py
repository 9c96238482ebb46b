"""PromptEncoder: encodes the pieces of prompts as the tensors of the language model, and records the spans of turns.

Codes [K, F] are transposed to columns [F, K] here and nowhere else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase

from higgs_audio import special_tokens
from higgs_audio.delay import IGNORE_INDEX, apply_delay, delay_labels
from higgs_audio.errors import CheckpointError, PromptError
from higgs_audio.model.tower import num_features
from higgs_audio.prompt.template import Piece
from higgs_audio.special_tokens import SPEAKER_TAG
from higgs_audio.text.markup import is_unicode

MAX_TAG_TOKENS = 8  # a speaker tag of more tokens is unknown to the tokenizer, and counts as text

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class AudioInput:
    """The codes, the mel features of one window, or both (features first) that replace one audio placeholder."""

    codes: Tensor | None = None  # [K, F]
    mels: Tensor | None = None  # [mel bins, M]
    num_mels: int = 0  # frames of `mels` before the padding


@dataclass(frozen=True)
class TurnSpan:
    """The token range of the body of one turn: the tokens between its header and its closing token.

    Attributes:
        role: role of the turn.
        start, stop: positions in the unpadded ids; `ids[start:stop]` is the body, which may be empty.
        tag_length: number of tokens of the speaker tag at its start, such as "[SPEAKER0] "; 0 without a tag.
        audio: (start, stop) of the placeholders of each audio in the body.
    """

    role: str
    start: int
    stop: int
    tag_length: int = 0
    audio: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """One unpadded prompt.

    Attributes:
        input_ids: [T].
        labels: [T], -100 where a token is not trained.
        columns: [F, K], the delayed columns of all its audio, in order.
        column_labels: [F, K].
        is_feature: [T] bool, True where a placeholder stands for a feature of the audio tower.
        windows: the audio inputs that have mel features, in order.
        turns: the turns in order, without the header of a generation prompt.
    """

    input_ids: Tensor
    labels: Tensor
    columns: Tensor
    column_labels: Tensor
    is_feature: Tensor
    windows: Sequence[AudioInput]
    turns: tuple[TurnSpan, ...] = ()

    def turns_of(self, role: str) -> list[TurnSpan]:
        """Returns the turns of a role, in order."""
        return [turn for turn in self.turns if turn.role == role]

    @property
    def last_user_turn(self) -> TurnSpan:
        """The last user turn.

        Raises:
            PromptError: the prompt has no user turn.
        """
        turns = self.turns_of("user")
        if not turns:
            raise PromptError("the prompt has no user turn whose text could be masked; add one, or omit guidance")
        return turns[-1]


@dataclass
class _Draft:
    """A prompt while it is encoded from left to right."""

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)  # [L, K] of each audio
    column_labels: list[Tensor] = field(default_factory=list)  # [L, K] of each audio
    is_feature: list[bool] = field(default_factory=list)
    windows: list[AudioInput] = field(default_factory=list)
    turns: list[TurnSpan] = field(default_factory=list)
    turn: TurnSpan | None = None  # the open turn, whose body is being encoded

    def add(self, ids: Sequence[int], trained: Sequence[bool], is_feature: bool = False) -> None:
        """Appends tokens."""
        self.ids += ids
        self.trained += trained
        self.is_feature += [is_feature] * len(ids)

    def open_turn(self, role: str, start: int) -> None:
        """Starts the body of a turn at the position `start`."""
        self.turn = TurnSpan(role, start, start)

    def close_turn(self) -> None:
        """Ends the body of the open turn, if there is one."""
        if self.turn is not None:
            self.turns.append(replace(self.turn, stop=len(self.ids)))
        self.turn = None

    def add_audio_span(self, start: int) -> None:
        """Records the tokens from `start` on as audio of the open turn."""
        if self.turn is not None:
            self.turn = replace(self.turn, audio=(*self.turn.audio, (start, len(self.ids))))

    def encoded(self, num_codebooks: int) -> EncodedPrompt:
        """Returns the complete prompt."""
        input_ids = torch.tensor(self.ids)  # [T]
        empty = torch.zeros(0, num_codebooks, dtype=torch.long)
        return EncodedPrompt(
            input_ids=input_ids,
            labels=input_ids.masked_fill(~torch.tensor(self.trained), IGNORE_INDEX),
            columns=torch.cat([empty, *self.columns]),
            column_labels=torch.cat([empty, *self.column_labels]),
            is_feature=torch.tensor(self.is_feature),
            windows=self.windows,
            turns=tuple(self.turns),
        )


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes pieces to `EncodedPrompt` and batches them, for one text tokenizer and one set of codebooks."""

    tokenizer: PreTrainedTokenizerBase
    num_codebooks: int
    codebook_size: int

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each special token.

        Raises:
            CheckpointError: the tokenizer lacks one of them.
        """
        vocabulary = self.tokenizer.get_vocab()
        if missing := [token for token in special_tokens.SPECIAL_TOKENS if token not in vocabulary]:
            raise CheckpointError(f"the tokenizer lacks the token {missing[0]}; use that of a Higgs Audio checkpoint")
        return {token: vocabulary[token] for token in special_tokens.SPECIAL_TOKENS}

    @property
    def bos_and_eos(self) -> tuple[int, int]:
        """The ids of stream bos and stream eos."""
        return self.codebook_size, self.codebook_size + 1

    def encode(
        self, pieces: Sequence[Piece], audio: Sequence[Sequence[AudioInput]], piecewise: bool = False
    ) -> EncodedPrompt:
        """Encodes one prompt; each audio placeholder is repeated once per feature, then once per column.

        Args:
            pieces: the prompt.
            audio: the inputs of each audio piece, in order. Each window after the first gets its own opening and
                closing tokens.
            piecewise: tokenize each text separately instead of joining adjacent texts first.
        """
        draft, remaining = _Draft(), iter(audio)
        for group in _groups(pieces, piecewise):
            if group[0].kind == "text":
                self._add_text(draft, group)
            else:
                self._add_token(draft, group[0], remaining)
        return draft.encoded(self.num_codebooks)

    def mask_last_text(self, prompt: EncodedPrompt) -> Tensor:
        """Returns the ids [T] with the text of the last user turn, except its speaker tag, replaced by padding.

        Raises:
            PromptError: the prompt has no user turn.
        """
        turn, masked = prompt.last_user_turn, prompt.input_ids.clone()
        masked[turn.start + turn.tag_length : turn.stop] = self.ids[special_tokens.PAD]
        return masked

    def _add_token(self, draft: _Draft, piece: Piece, audio: Iterator[Sequence[AudioInput]]) -> None:
        """Adds a special token, or the placeholders of the next audio."""
        if piece.closes:
            draft.close_turn()
        if piece.kind == "audio":
            self._add_audio(draft, piece, next(audio))
        else:
            draft.add([self.ids[piece.content]], [piece.trained])
        if piece.opens:
            draft.open_turn(piece.opens, len(draft.ids))

    def _add_audio(self, draft: _Draft, piece: Piece, inputs: Sequence[AudioInput]) -> None:
        """Adds the windows of an audio; its first opening and last closing token are pieces of the prompt."""
        start = len(draft.ids)
        for number, window in enumerate(inputs):
            if number:
                draft.add([self.ids[special_tokens.AUDIO_EOS], self.ids[special_tokens.AUDIO_BOS]], [piece.trained] * 2)
            if window.mels is not None:
                features = [self.ids[piece.content]] * num_features(window.num_mels)
                draft.windows.append(window)
                draft.add(features, [False] * len(features), is_feature=True)
            if window.codes is not None:
                self._add_columns(draft, piece, window.codes)
        draft.add_audio_span(start)

    def _add_columns(self, draft: _Draft, piece: Piece, codes: Tensor) -> None:
        """Adds delayed columns; the last K - 1 placeholders of an assistant segment are delay tokens."""
        bos, eos = self.bos_and_eos
        columns = apply_delay(codes, bos, eos).T  # [L, K]
        labels = delay_labels(codes, eos).T  # [L, K]
        draft.columns.append(columns)
        draft.column_labels.append(labels if piece.trained else torch.full_like(labels, IGNORE_INDEX))
        num_delay = self.num_codebooks - 1 if piece.content == special_tokens.AUDIO_OUT else 0
        placeholder, delay = self.ids[piece.content], self.ids[special_tokens.AUDIO_DELAY]
        ids = [placeholder] * (len(columns) - num_delay) + [delay] * num_delay
        draft.add(ids, [False] * len(ids))

    def _add_text(self, draft: _Draft, group: Sequence[Piece]) -> None:
        """Adds adjacent texts, tokenized as one; a token is trained if it extends into a trained text.

        The only untrained text in a group with trained texts, the blank line of a header, comes first. Likewise, a body
        begins at the first token that extends into it.
        """
        text = "".join(piece.content for piece in group)
        encoded = self._tokenize(text)
        ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
        if special := set(ids) & set(self.ids.values()):  # the tokenizer's special tokens are not marked as such
            raise PromptError(f"the text {text!r:.60} is tokenized with the special token {min(special)}; remove it")
        untrained = sum(len(piece.content) for piece in group if not piece.trained)
        header, role = _header(group)
        skipped = sum(end <= header for end in ends)  # tokens before the body
        start = len(draft.ids) + skipped
        if role:
            draft.open_turn(role, start)
        if draft.turn is not None and draft.turn.start == start:
            tag_length = _tag_length(text[header:], [end - header for end in ends[skipped:]])
            draft.turn = replace(draft.turn, tag_length=tag_length)
        draft.add(ids, [end > untrained for end in ends])

    def _tokenize(self, text: str) -> BatchEncoding:
        """Returns the ids of a text and their offsets; special tokens typed in it are read as text."""
        try:
            return self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
            )
        except TypeError as error:
            if is_unicode(text):
                raise
            raise PromptError(
                f"the text {text!r:.60} contains half of a character (a lone surrogate); decode it as UTF-8"
            ) from error

    def collate(
        self, rows: Sequence[EncodedPrompt], output_labels: bool, padding_side: PaddingSide = "left"
    ) -> BatchFeature:
        """Batches prompts of any lengths: tokens padded on `padding_side`, columns on the right."""
        num_tokens = max(len(row.input_ids) for row in rows)
        num_columns = max(len(row.columns) for row in rows)
        padding = self.tokenizer.pad_token_id
        padding = self.ids[special_tokens.END_OF_TEXT] if padding is None else padding

        def tokens(values: Tensor, fill: int) -> Tensor:  # [t] -> [T]
            missing = num_tokens - len(values)
            return pad(values, (missing, 0) if padding_side == "left" else (0, missing), value=fill)

        def columns(values: Tensor, fill: int) -> Tensor:  # [f, K] -> [F, K]
            return pad(values, (0, 0, 0, num_columns - len(values)), value=fill)

        lengths = torch.tensor([len(row.columns) for row in rows])  # [B]
        features = {
            "input_ids": torch.stack([tokens(row.input_ids, padding) for row in rows]),  # [B, T]
            "attention_mask": torch.stack([tokens(torch.ones_like(row.input_ids), 0) for row in rows]),  # [B, T]
            "audio_input_ids": torch.stack([columns(row.columns, self.bos_and_eos[1]) for row in rows]),  # [B, F, K]
            "audio_input_ids_mask": torch.arange(num_columns)[None] < lengths[:, None],  # [B, F]
        }
        if output_labels:
            features["labels"] = torch.stack([tokens(row.labels, IGNORE_INDEX) for row in rows])  # [B, T]
            column_labels = [columns(row.column_labels, IGNORE_INDEX) for row in rows]
            features["audio_labels"] = torch.stack(column_labels)  # [B, F, K]
        if windows := [window for row in rows for window in row.windows]:
            features |= _stack_windows(windows)
            features["feature_positions"] = torch.stack([tokens(row.is_feature, 0) for row in rows])  # [B, T]
        return BatchFeature(features)


def _header(group: Sequence[Piece]) -> tuple[int, str]:
    """Returns the number of characters before the body of the turn that a group of texts opens, and its role.

    Returns (0, "") if the group opens no turn.
    """
    length = 0
    for piece in group:
        length += len(piece.content)
        if piece.opens:
            return length, piece.opens
    return 0, ""


def _tag_length(text: str, ends: Sequence[int]) -> int:
    """Returns the number of tokens of the speaker tag at the start of a text, with one space after it.

    Returns 0 without a tag, if no token ends where the tag does, or if it has more than `MAX_TAG_TOKENS`. `ends` are
    the character offsets at which the tokens end.
    """
    tag = SPEAKER_TAG.match(text)
    if tag is None:
        return 0
    stop = tag.end() + text[tag.end() : tag.end() + 1].isspace()
    count = sum(end <= stop for end in ends)
    return count if 0 < count <= MAX_TAG_TOKENS and ends[count - 1] >= tag.end() else 0


def _stack_windows(windows: Sequence[AudioInput]) -> dict[str, Tensor]:
    """Stacks the mel windows of a batch, with a mask of their frames."""
    mels = torch.stack([window.mels for window in windows if window.mels is not None])  # [N, mel bins, M]
    counts = torch.tensor([window.num_mels for window in windows])  # [N]
    return {"input_features": mels, "feature_attention_mask": torch.arange(mels.shape[2]) < counts[:, None]}  # [N, M]


def _groups(pieces: Sequence[Piece], piecewise: bool) -> Iterator[list[Piece]]:
    """Yields the pieces that are tokenized together: adjacent texts, unless `piecewise`; every other piece alone."""
    for is_text, run in groupby(pieces, key=lambda piece: piece.kind == "text"):
        if is_text and not piecewise:
            yield list(run)
        else:
            yield from ([piece] for piece in run)
