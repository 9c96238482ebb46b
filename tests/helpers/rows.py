"""Conversations as rows of ids, columns and labels, and batches of them."""

from dataclasses import dataclass

import torch
from oracle import (
    AUDIO_EOS,
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BEGIN,
    BOS,
    DELAY,
    EOS,
    EOT,
    PAD,
    K,
    make_codes,
)

from higgs_audio.delay import IGNORE_INDEX, apply_delay, delay_labels


@dataclass
class Row:
    """One conversation: ids and labels [T], columns and their labels [F, K]."""

    ids: list
    labels: list
    columns: torch.Tensor
    column_labels: torch.Tensor


def make_row(num_text, references=(), answer=None, placeholder=AUDIO_OUT):
    """Returns a row with references, which have no labels, a text, and an answer, which has labels."""
    row = Row([BEGIN], [IGNORE_INDEX], torch.zeros(0, K, dtype=torch.long), torch.zeros(0, K, dtype=torch.long))
    segments = [(codes, False) for codes in references] + ([(answer, True)] if answer is not None else [])
    for codes, trained in segments:
        if trained:
            row.ids += range(20, 20 + num_text)
        columns = apply_delay(codes, BOS, EOS).T  # [F, K]
        labels = delay_labels(codes, EOS).T if trained else torch.full_like(columns, IGNORE_INDEX)
        row.labels += [IGNORE_INDEX] * (len(row.ids) - len(row.labels))
        row.ids += [AUDIO_OUT_BOS] + [placeholder] * (len(columns) - 7) + [DELAY] * 7 + [AUDIO_EOS, EOT]
        text = [AUDIO_OUT_BOS, *[IGNORE_INDEX] * len(columns), AUDIO_EOS, EOT]
        row.labels += text if trained else [IGNORE_INDEX] * len(text)
        row.columns, row.column_labels = torch.cat([row.columns, columns]), torch.cat([row.column_labels, labels])
    if answer is None:
        row.ids += [*range(20, 20 + num_text), AUDIO_OUT_BOS]
        row.labels += [IGNORE_INDEX] * (len(row.ids) - len(row.labels))
    return row


def collate(*rows, labels=False):
    """Returns rows as the keyword arguments of a batch: ids padded on the left, columns on the right."""
    length, frames = max(len(row.ids) for row in rows), max(len(row.columns) for row in rows)
    left = [length - len(row.ids) for row in rows]
    batch = {
        "input_ids": torch.tensor([[PAD] * n + row.ids for n, row in zip(left, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * len(row.ids) for n, row in zip(left, rows, strict=True)]),
    }
    if frames:
        batch["audio_input_ids"] = torch.full((len(rows), frames, K), EOS)
        batch["audio_input_ids_mask"] = torch.zeros(len(rows), frames, dtype=torch.bool)
    if labels:
        batch["labels"] = torch.tensor([[IGNORE_INDEX] * n + row.labels for n, row in zip(left, rows, strict=True)])
        batch["audio_labels"] = torch.full((len(rows), frames, K), IGNORE_INDEX)
    for number, row in enumerate(rows if frames else ()):
        batch["audio_input_ids"][number, : len(row.columns)] = row.columns
        batch["audio_input_ids_mask"][number, : len(row.columns)] = True
        if labels:
            batch["audio_labels"][number, : len(row.columns)] = row.column_labels
    return batch


def without_reference():
    return make_row(12)


def with_one_reference():
    return make_row(5, [make_codes(6, 1)])


def with_two_references():
    return make_row(9, [make_codes(3, 2), make_codes(11, 3)])


def training_batch():
    """Returns rows of different lengths, with no, one and two references before the answer."""
    return collate(
        make_row(9, [], make_codes(4, 4)),
        make_row(3, [make_codes(7, 5)], make_codes(9, 6)),
        make_row(5, [make_codes(2, 7), make_codes(5, 8)], make_codes(1, 9)),
        labels=True,
    )


def assert_close_where_real(ours, theirs, mask, bound=1e-5):
    """Asserts equality at the positions that are not padding, up to `bound` times the largest value."""
    ours, theirs = ours.detach()[mask.bool()], theirs.detach()[mask.bool()]
    assert float((ours - theirs).abs().max()) < bound * float(theirs.abs().max())
