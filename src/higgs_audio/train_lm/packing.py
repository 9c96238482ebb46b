"""A batch of conversations as one row without padding, whose conversations do not see one another."""

import torch
from torch import Tensor

from higgs_audio.train_lm.collate import Batch

MOST_SPEAKERS = 64  # in one conversation


def pack(batch: Batch) -> Batch:
    """The conversations of `batch` (padded behind, see `collate`) one after the other, `[1, T]`.

    Positions begin anew with each, which tells the attention where it ends: a block mask under sdpa and eager,
    sequence lengths under flash attention. A first position is never labelled, so no loss reaches across a border.
    """
    inputs = dict(batch.inputs)
    attended = inputs.pop("attention_mask").bool()  # [B, T]
    real = inputs.pop("audio_input_ids_mask").bool()  # [B, F]
    tokens = {name: inputs[name][attended][None] for name in ("input_ids", "labels")}  # [1, N]
    columns = {name: inputs[name][real][None] for name in ("audio_input_ids", "audio_labels")}  # [1, M, K]
    positions = (attended.long().cumsum(1) - 1)[attended][None]  # [1, N]
    starts = attended.sum(1).cumsum(0) - attended.sum(1)  # [B]
    look = torch.where(batch.look >= 0, batch.look + starts[:, None], batch.look)
    packed = tokens | columns | {"position_ids": positions}
    packed["audio_input_ids_mask"] = torch.ones(columns["audio_input_ids"].shape[:2], dtype=torch.bool)
    apart = batch.said[..., 1] + MOST_SPEAKERS * torch.arange(len(attended))[:, None]  # nobody is in two conversations
    said = torch.stack([batch.said[..., 0], apart], dim=-1)
    return Batch(
        inputs=packed,
        look=look[attended][None],
        phones=batch.phones[attended][None],
        turn_labels=batch.turn_labels[real][None],
        said=said[attended][None],
        who=batch.who[attended][None],
        num_frames=batch.num_frames,
    )


def blocks(positions: Tensor) -> Tensor:
    """Number of the conversation that each of `positions [B, T]` belongs to, `[B, T]`."""
    return (torch.diff(positions, prepend=positions[:, :1] - 1) != 1).cumsum(1)
