"""Packing of a batch into one row without padding, in which conversations do not attend to each other."""

import torch
from torch import Tensor

from higgs_audio.train_lm.collate import Batch

MAX_SPEAKERS = 64  # of one conversation


def pack(batch: Batch) -> Batch:
    """Concatenates the conversations of `batch` (padded on the right, see `collate`) to one row, `[1, T]`.

    Position ids restart with each conversation; from them, sdpa and eager attention derive a block mask, and flash
    attention the sequence lengths. The first position of a conversation is never labeled, so no loss crosses a
    boundary.
    """
    inputs = dict(batch.inputs)
    attended = inputs.pop("attention_mask").bool()  # [B, T]
    real = inputs.pop("audio_input_ids_mask").bool()  # [B, F]
    tokens = {name: inputs[name][attended][None] for name in ("input_ids", "labels")}  # [1, N]
    columns = {name: inputs[name][real][None] for name in ("audio_input_ids", "audio_labels")}  # [1, M, K]
    positions = (attended.long().cumsum(1) - 1)[attended][None]  # [1, N]
    starts = attended.sum(1).cumsum(0) - attended.sum(1)  # [B]
    targets = batch.attention_targets
    targets = torch.where(targets >= 0, targets + starts[:, None], targets)
    packed = tokens | columns | {"position_ids": positions}
    packed["audio_input_ids_mask"] = torch.ones(columns["audio_input_ids"].shape[:2], dtype=torch.bool)
    turn, speaker = batch.turn_speakers.unbind(-1)
    speaker = speaker + MAX_SPEAKERS * torch.arange(len(attended))[:, None]  # no speaker is in two conversations
    return Batch(
        inputs=packed,
        attention_targets=targets[attended][None],
        phone_labels=batch.phone_labels[attended][None],
        turn_labels=batch.turn_labels[real][None],
        turn_speakers=torch.stack([turn, speaker], dim=-1)[attended][None],
        speaker_labels=batch.speaker_labels[attended][None],
        num_frames=batch.num_frames,
    )


def sequence_ids(positions: Tensor) -> Tensor:
    """Returns the index of each position's conversation in its row, `[B, T]`, from position ids `[B, T]`."""
    return (torch.diff(positions, prepend=positions[:, :1] - 1) != 1).cumsum(1)
