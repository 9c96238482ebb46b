"""The results of generation: steps from `stream`, a `GenerateOutput` from `generate`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from higgs_audio.delay import Column


@dataclass(frozen=True)
class Step:
    """The result of one step for one row: a text token, or a placeholder with its column.

    Attributes:
        row: index in the batch.
        token: id of the text token or the placeholder.
        column: ids of the K codebooks; None in a text step.
        column_index: index of the column in its segment; 0 is the bos column, which opens a new segment.
        finish_reason: "stop" or "length" on the row's last step.
    """

    row: int
    token: int
    column: Column | None = None
    column_index: int | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class GenerateOutput:
    """The concatenation of a stream.

    It is indexed and unpacked like the tuple (sequences, audio_sequences). For a batch of one, `[1]` is the list of the
    row's segments, the input of `HiggsAudioProcessor.decode`.

    Attributes:
        sequences: [B, T'] int64, the prompt and all new tokens, one placeholder per column; rows that finished early
            are padded on the right with the pad token.
        audio_sequences: the segments of each row, each [K, n] int64 of delayed columns from its bos column on. A
            segment continued from the prompt includes the prompt's columns.
        finish_reasons: "stop" (an end token or a stop string) or "length" (a limit) for each row.
    """

    sequences: Tensor
    audio_sequences: list[list[Tensor]]
    finish_reasons: list[str]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        yield self[1]

    @overload
    def __getitem__(self, index: Literal[0]) -> Tensor: ...
    @overload
    def __getitem__(self, index: Literal[1]) -> list[Any]: ...
    @overload
    def __getitem__(self, index: int) -> Tensor | list[Any]: ...
    def __getitem__(self, index: int) -> Tensor | list[Any]:
        segments = self.audio_sequences[0] if len(self.audio_sequences) == 1 else self.audio_sequences
        return (self.sequences, segments)[index]


def concatenate(
    stream: Iterable[Sequence[Step]], input_ids: Tensor, segments: Sequence[Sequence[Column]], pad_token_id: int
) -> GenerateOutput:
    """Runs a stream to its end and returns its prompts and steps as one output.

    Args:
        stream: the steps of each forward pass.
        input_ids: `[B, T]`, the prompts.
        segments: for each row, the columns of the segment in which its prompt ends; empty if it ends in none.
        pad_token_id: id that pads rows that finished early.
    """
    rows = [(tokens, [list(columns)]) for tokens, columns in zip(input_ids.tolist(), segments, strict=True)]
    reasons = [""] * len(rows)
    for steps in stream:
        for step in steps:
            tokens, columns = rows[step.row]
            tokens.append(step.token)
            if step.column is not None:
                if step.column_index == 0:
                    columns.append([])
                columns[-1].append(step.column)
            reasons[step.row] = step.finish_reason or reasons[step.row]
    length = max(len(tokens) for tokens, _ in rows)
    padded = [tokens + [pad_token_id] * (length - len(tokens)) for tokens, _ in rows]
    sequences = torch.tensor(padded, device=input_ids.device)  # [B, T']
    audio = [[torch.tensor(part, device=input_ids.device).T for part in columns if part] for _, columns in rows]
    return GenerateOutput(sequences, audio, reasons)
