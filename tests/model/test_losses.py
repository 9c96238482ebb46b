"""Tests of the losses of the language model, compared with a loop over every cell."""

import math

import pytest
import torch
from oracle import (
    AUDIO_OUT,
    DELAY,
    EOS,
    K,
    V,
    make_codes,
    make_config,
)
from rows import (
    collate,
    make_row,
    training_batch,
)

from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.model.model import HiggsAudioForConditionalGeneration


def slow_losses(output, batch, config):
    """Returns the mean cross-entropy of text and of each codebook, [K], cell by cell, from the logits one position
    earlier."""
    texts, audios = [], [[] for _ in range(config.audio_num_codebooks)]
    for row, ids in enumerate(batch["input_ids"].tolist()):
        column = 0
        for position, token in enumerate(ids):
            text_label = int(batch["labels"][row, position])
            if text_label != IGNORE_INDEX:
                texts.append(-output.text_logits[row, position - 1].log_softmax(-1)[text_label])
            if token not in config.audio_placeholder_ids:
                continue
            for codebook, label in enumerate(batch["audio_labels"][row, column].tolist()):
                if label != IGNORE_INDEX:
                    audios[codebook].append(-output.logits[row, position - 1, codebook].log_softmax(-1)[label])
            column += 1
    return torch.stack(texts).mean(), torch.stack([torch.stack(cells).mean() for cells in audios])


@torch.no_grad()
def test_the_loss_equals_a_loop_over_every_cell(model):
    batch = training_batch()
    output = model(**batch)
    text, codebooks = slow_losses(output, batch, model.config)
    torch.testing.assert_close(output.text_loss, text)
    torch.testing.assert_close(output.codebook_losses, codebooks)
    torch.testing.assert_close(output.audio_loss, codebooks.mean())
    torch.testing.assert_close(output.loss, text + codebooks.mean())


def test_only_loss_changes_neither_loss_nor_gradient(model):
    batch = training_batch()
    whole, alone = model(**batch), model(**batch, only_loss=True)
    assert alone.logits is None
    assert alone.text_logits is None
    torch.testing.assert_close(alone.loss, whole.loss)
    parameters = list(model.parameters())
    gradients = zip(
        torch.autograd.grad(whole.loss, parameters), torch.autograd.grad(alone.loss, parameters), strict=True
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_codebook_weights_weight_the_mean(model):
    weights = torch.tensor([4.0, 2, 1, 1, 0.5, 0.5, 0.5, 0.5])
    output = model(**training_batch(), codebook_weights=weights)
    torch.testing.assert_close(output.audio_loss, (output.codebook_losses * weights).sum() / 10)


def test_a_batch_without_any_label_has_zero_loss_and_finite_gradients(model):
    batch = training_batch()
    batch["labels"].fill_(IGNORE_INDEX)
    batch["audio_labels"].fill_(IGNORE_INDEX)
    loss = model(**batch).loss
    assert loss.tolist() == 0
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert all(gradient is None or not bool(gradient.any()) for gradient in gradients)


@torch.no_grad()
def test_a_new_model_predicts_every_code_with_equal_probability():
    torch.manual_seed(0)
    output = HiggsAudioForConditionalGeneration(make_config())(**training_batch())
    torch.testing.assert_close(output.codebook_losses, torch.full((K,), math.log(V + 2)), rtol=0, atol=0.1)
    assert abs(float(output.text_loss) - math.log(320)) < 0.3  # for nine labels only


CERTAIN = 50.0  # logit of the ids that the model below predicts; the others are 0


@pytest.fixture
def scripted():
    """A model as wide as its audio logits, which a test sets as `scripted.wanted` [B, T, K, V + 2]."""
    model = HiggsAudioForConditionalGeneration(make_config({"hidden_size": K * (V + 2)})).eval()
    with torch.no_grad():
        model.audio_lm_head.weight.copy_(torch.eye(K * (V + 2)))

    def set_hidden(module, inputs, output):
        output.last_hidden_state = model.wanted.flatten(2)
        return output

    model.model.register_forward_hook(set_hidden)
    return model


def certain_logits(batch, offset, ids=range(V + 2)):
    """Returns logits that predict, at each position, the column `offset` placeholders later in the row, for codes in
    `ids`."""
    logits = torch.zeros(*batch["input_ids"].shape, K, V + 2)
    audio = torch.isin(batch["input_ids"], torch.tensor([AUDIO_OUT, DELAY]))
    for row in range(len(logits)):
        for column, position in enumerate(audio[row].nonzero().squeeze(1).tolist()):
            for codebook, code in enumerate(batch["audio_input_ids"][row, column].tolist()):
                if code in ids:
                    logits[row, position - offset, codebook, code] = CERTAIN
    return logits


@torch.no_grad()
def test_the_loss_is_0_for_predicting_the_next_column_and_large_for_any_other(scripted):
    """Labels shifted twice, or not at all, would train a model to predict the wrong column."""
    batch = training_batch()
    scripted.wanted = certain_logits(batch, offset=1)
    assert float(scripted(**batch).audio_loss) < 1e-6
    for offset in (0, 2):
        scripted.wanted = certain_logits(batch, offset)
        assert float(scripted(**batch).audio_loss) > 30


@pytest.mark.parametrize("num_frames", [1, 9])
@torch.no_grad()
def test_every_codebook_is_trained_on_exactly_one_eos(scripted, num_frames):
    """A model that predicts every code but no eos is wrong in one of the F + 1 trained cells of each codebook."""
    batch = collate(make_row(4, [make_codes(5, 1)], make_codes(num_frames, 0)), labels=True)
    assert (batch["audio_labels"] == EOS).sum((0, 1)).tolist() == [1] * K
    assert (batch["audio_labels"] != IGNORE_INDEX).sum((0, 1)).tolist() == [num_frames + 1] * K
    scripted.wanted = certain_logits(batch, offset=1, ids=range(V))
    wrong = math.log(V + 2) / (num_frames + 1)  # at the eos all ids are equally likely
    torch.testing.assert_close(scripted(**batch).codebook_losses, torch.full((K,), wrong))


@torch.no_grad()
def test_a_reference_that_is_not_trained_adds_no_loss(scripted):
    batch = collate(make_row(4, [make_codes(5, 1)], make_codes(3, 0)), labels=True)
    scripted.wanted = certain_logits(batch, offset=1)
    audio = torch.isin(batch["input_ids"][0], torch.tensor([AUDIO_OUT, DELAY])).nonzero().squeeze(1)
    scripted.wanted[0, : audio[5 + K + 1] - 1] = torch.randn(K, V + 2)
    assert float(scripted(**batch).audio_loss) < 1e-6
