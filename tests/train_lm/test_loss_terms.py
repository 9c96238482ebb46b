"""Tests of the losses of a step: their terms, and the gradient of a divided step."""

import itertools

import pytest
import torch
from runs import random_dialogues, tiny_model

from higgs_audio.data.phones import PHONES
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.errors import NumericsError
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.batches import MicroBatcher
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.guide import Guide
from higgs_audio.train_lm.losses import LanguageModelLoss, LossWeights, counts, weighted_loss
from higgs_audio.train_lm.packing import pack
from higgs_audio.training.parallel import World
from higgs_audio.training.run import apply_step

END = 1025  # end of a codebook's stream


SPEAKERS = {"ava": 0, "joe": 1}  # classes of the guide's speaker head


@pytest.fixture(scope="module")
def dialogues():
    return random_dialogues()


def new_loss(processor, guided=True):
    model = tiny_model(processor)
    return LanguageModelLoss(
        model, Guide(model, (0,), 1, len(PHONES) + 1, (1,), 0, len(SPEAKERS)) if guided else None, with_z=True
    )


def test_the_terms_equal_the_losses_of_the_model(dialogues, processor):
    losses_of = new_loss(processor, guided=False)
    batch = collate(dialogues, processor, speakers=SPEAKERS)
    sums, numbers = losses_of(batch), counts(batch, END)
    out = losses_of.model(**batch.inputs)
    books = torch.stack([sums[f"codebook_{k}"] / numbers[f"codebook_{k}"] for k in range(8)])
    torch.testing.assert_close(books, out.codebook_losses)
    torch.testing.assert_close(sums["text"] / numbers["text"], out.text_loss)
    loss = weighted_loss(sums, numbers, LossWeights(text=1.0, codebooks=(1.0,) * 8))
    torch.testing.assert_close(loss, out.loss)


def test_end_and_z_losses_equal_a_loop_over_every_code(dialogues, processor):
    losses_of = new_loss(processor, guided=False)
    batch = collate(dialogues[:2], processor)
    sums, numbers = losses_of(batch), counts(batch, END)
    logits = losses_of.model(**batch.inputs).logits.detach()  # [B, T, K, V + 2]
    ends = squares = cells = 0
    audio = losses_of.model.model.audio_mask(batch.inputs["input_ids"])
    for row in range(2):
        positions = audio[row].nonzero().squeeze(1).tolist()
        for (before, _), labels in zip(
            itertools.pairwise(positions), batch.inputs["audio_labels"][row, 1:], strict=False
        ):
            for book in (labels != IGNORE_INDEX).nonzero().squeeze(1).tolist():
                scores = logits[row, before, book]
                cells += 1
                squares += float(scores.logsumexp(0)) ** 2
                ends -= float(scores.log_softmax(0)[END]) if int(labels[book]) == END else 0.0
    assert float(sums["z"].detach()) == pytest.approx(squares, rel=1e-4)
    assert float(sums["end"]) == pytest.approx(ends, rel=1e-4)
    assert numbers["z"] == cells
    assert numbers["end"] == 8 * sum(len(d.turns) - d.first_trained for d in dialogues[:2])


def test_a_batch_without_labels_has_zero_gradients(dialogues, processor):
    losses_of = new_loss(processor)
    batch = MicroBatcher(processor, 1, 2, 1, 0, False, 1024, 0, SPEAKERS).split(dialogues[:1], 0, 0.0)[0]
    assert not any(counts(batch, END).values())
    weighted_loss(
        losses_of(batch), counts(batch, END), LossWeights(1.0, (1.0,) * 8, 1.0, 1.0, 1.0, 1.0, 1.0)
    ).backward()
    assert not any(bool(w.grad.any()) for w in losses_of.parameters() if w.grad is not None)


@pytest.mark.parametrize("cuts", [(2, 1), (1, 3), (2, 2), (4, 2)], ids=str)
def test_a_step_divided_into_micro_batches_has_the_gradient_of_the_whole(dialogues, processor, cuts):
    """Losses are divided by the labels of all micro-batches; a mean of means would give short micro-batches more
    weight."""
    losses_of, whole = new_loss(processor), MicroBatcher(processor, 0, 1, 1, 25, False, 1024, 3, SPEAKERS)
    size, accumulate = cuts
    batchers = [MicroBatcher(processor, rank, size, accumulate, 25, False, 1024, 3, SPEAKERS) for rank in range(size)]
    pieces = [batch for batcher in batchers for batch in batcher.split(dialogues, 7, 0.2)]
    assert len(pieces) == size * accumulate
    weights = LossWeights(0.5, (4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 1e-3, 0.3, 0.2, 0.4, 0.5)
    gradients = []
    for batches in (whole.split(dialogues, 7, 0.2), pieces):
        losses_of.zero_grad()
        numbers = lm.sum_over_world([counts(batch, END) for batch in batches], World())
        for batch in batches:
            weighted_loss(losses_of(batch), numbers, weights).backward()
        gradients.append([weight.grad.clone() for weight in losses_of.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_has_the_losses_and_gradient_of_separate_conversations(dialogues, processor, attention):
    losses_of = new_loss(processor)
    losses_of.model.set_attn_implementation(attention)
    weights, gradients = LossWeights(0.5, (2.0, *(1.0,) * 7), 1e-3, 0.3, 0.2, 0.4, 0.5), []
    separate = [collate([dialogue], processor, speakers=SPEAKERS) for dialogue in dialogues]
    packed = pack(collate(dialogues, processor, speakers=SPEAKERS))
    assert packed.inputs["input_ids"].shape[1] == sum(batch.inputs["input_ids"].shape[1] for batch in separate)
    assert counts(packed, END) == lm.sum_over_world([counts(batch, END) for batch in separate], World())
    for batches in (separate, [packed]):
        losses_of.zero_grad()
        sums = [losses_of(batch) for batch in batches]
        numbers = counts(packed, END)
        sum(weighted_loss(terms, numbers, weights) for terms in sums).backward()
        gradients.append([weight.grad.clone() for weight in losses_of.parameters()])
        losses = lm.sum_over_world([{name: value.detach() for name, value in terms.items()} for terms in sums], World())
        gradients[-1].append(torch.tensor(list(losses.values())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_raises_before_the_step(processor):
    losses_of = new_loss(processor, guided=False)
    before = [weight.detach().clone() for weight in losses_of.parameters()]
    optimizer = torch.optim.AdamW(losses_of.parameters())
    for weight in losses_of.parameters():
        weight.grad = torch.ones_like(weight)
    with pytest.raises(NumericsError):
        apply_step(float("nan"), losses_of, optimizer, 1.0, 1.0)
    assert all(torch.equal(*pair) for pair in zip(before, losses_of.parameters(), strict=True))
