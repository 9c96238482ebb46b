"""Tests of the language model; the oracle for logits, losses and gradients is the model of transformers."""

import math
from collections import Counter

import pytest
import torch
from hooks import TorchCalls
from oracle import (
    AUDIO_IN,
    AUDIO_OUT,
    BOS,
    DELAY,
    EOS,
    K,
    V,
    make_codes,
    make_config,
)
from rows import (
    assert_close_where_real,
    collate,
    make_row,
    training_batch,
    with_one_reference,
    with_two_references,
    without_reference,
)
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

# transformers as oracle


@pytest.mark.parametrize(
    "rows",
    [
        [without_reference],
        [with_one_reference],
        [with_two_references],
        [without_reference, with_one_reference, with_two_references],
    ],
    ids=["no reference", "one reference", "two references", "left-padded batch"],
)
@torch.no_grad()
def test_logits_are_those_of_transformers(model, oracle_model, rows):
    batch = collate(*(row() for row in rows))
    ours = model(**batch)
    theirs = oracle_model(**batch, output_hidden_states=True)
    assert ours.logits.shape == (*batch["input_ids"].shape, K, V + 2)
    assert_close_where_real(ours.logits.flatten(2), theirs.logits, batch["attention_mask"])
    assert_close_where_real(
        ours.text_logits, oracle_model.text_lm_head(theirs.hidden_states[-1]), batch["attention_mask"]
    )


def test_losses_are_those_of_transformers_which_sums_over_codebooks(model, oracle_model):
    batch = training_batch()
    ours = model(**batch)
    theirs = oracle_model(**batch)
    torch.testing.assert_close(K * ours.audio_loss + ours.text_loss, theirs.loss, rtol=1e-5, atol=0)


def test_gradients_are_those_of_transformers(model, oracle_model):
    batch = training_batch()
    ours, theirs = model(**batch), oracle_model(**batch)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(theirs.loss, list(oracle_model.parameters()))
    wanted = dict(zip(dict(oracle_model.named_parameters()), wanted, strict=True))
    given = torch.autograd.grad(K * ours.audio_loss + ours.text_loss, parameters)
    for name, gradient in zip(names, given, strict=True):
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_both_published_settings_of_the_rotary_embedding_give_the_same_frequencies():
    published, in_transformers = make_config().text_config, HiggsAudioV2Config(head_dim=16)
    assert published.rope_parameters["low_freq_factor"] != in_transformers.rope_parameters["low_freq_factor"]
    frequencies = [ROPE_INIT_FUNCTIONS["llama3"](config)[0] for config in (published, in_transformers)]
    assert torch.equal(*frequencies)


def test_the_published_checkpoint_has_397_tensors_of_5_771_283_456_parameters_named_as_in_transformers():
    with torch.device("meta"):
        ours = HiggsAudioForConditionalGeneration(HiggsAudioConfig()).state_dict()
        theirs = HiggsAudioV2ForConditionalGeneration(
            HiggsAudioV2Config(codebook_size=1026), use_text_head=True
        ).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert len(ours) == 397
    assert sum(value.numel() for value in ours.values()) == 5_771_283_456


# Text and audio positions


def test_a_columns_embedding_is_the_sum_over_its_codebooks_of_one_table(model):
    table = model.model.embed_audio_tokens.embed_audio_tokens.weight
    column = torch.tensor([3, 0, BOS, EOS, 7, 15, 1, 2])
    wanted = sum(table[k * (V + 2) + int(code)] for k, code in enumerate(column))
    torch.testing.assert_close(model.model.embed_audio_tokens(column), wanted)


@torch.no_grad()
def test_the_three_placeholder_tokens_make_no_difference(model):
    ours = collate(make_row(5, [make_codes(6, 1)]))
    given = {**ours, "input_ids": ours["input_ids"].clone()}
    given["input_ids"][given["input_ids"] == AUDIO_OUT] = AUDIO_IN
    given["input_ids"][given["input_ids"] == DELAY] = AUDIO_OUT
    assert torch.equal(model(**ours).logits, model(**given).logits)


@torch.no_grad()
def test_a_row_of_a_batch_equals_the_row_alone(model):
    rows = [without_reference(), with_one_reference(), with_two_references()]
    together = model(**collate(*rows))
    for number, row in enumerate(rows):
        alone = model(**collate(row)).logits[0]
        torch.testing.assert_close(together.logits[number, -len(row.ids) :], alone, rtol=1e-4, atol=1e-4)
    assert all(bool(value.isfinite().all()) for value in (together.logits, together.text_logits))


def set_to_nan(model, names):
    """Sets the parameters of each layer whose names begin with one of `names` to NaN; returns a function that restores
    them."""
    spoiled = {
        parameter: parameter.detach().clone()
        for layer in model.model.layers
        for name, parameter in layer.named_parameters()
        if name.startswith(names)
    }
    with torch.no_grad():
        for parameter in spoiled:
            parameter.fill_(math.nan)

    def undo():
        with torch.no_grad():
            for parameter, value in spoiled.items():
                parameter.copy_(value)

    return undo


TEXT_SIDE = ("mlp.", "input_layernorm.", "post_attention_layernorm.")
AUDIO_SIDE = ("audio_mlp.", "audio_input_layernorm.", "audio_post_attention_layernorm.")


@pytest.mark.parametrize("with_ids", [False, True], ids=["column alone", "placeholder and column"])
@torch.no_grad()
def test_an_audio_step_uses_no_feed_forward_or_norm_of_text(model, with_ids):
    batch = collate(without_reference(), with_one_reference())
    cache = model(**batch, use_cache=True).past_key_values
    step = {"audio_input_ids": torch.full((2, 1, K), BOS)}
    step |= {"input_ids": torch.full((2, 1), AUDIO_OUT)} if with_ids else {}
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    undo = set_to_nan(model, TEXT_SIDE)
    try:
        output = model(**step, attention_mask=mask, past_key_values=cache)
        assert bool(output.logits.isfinite().all())
        assert not bool(model(**batch).logits.isfinite().any()), "the text side was not spoiled"
    finally:
        undo()


@torch.no_grad()
def test_text_uses_no_feed_forward_or_norm_of_audio(model):
    undo = set_to_nan(model, AUDIO_SIDE)
    try:
        assert bool(model(**collate(without_reference())).text_logits.isfinite().all())
        assert not bool(model(**collate(with_one_reference())).logits[:, -1].isfinite().any())
    finally:
        undo()


@torch.no_grad()
def test_a_step_of_columns_equals_a_step_of_placeholders_and_columns(model):
    batch = collate(without_reference(), with_one_reference())
    column = torch.randint(0, V, (2, 1, K), generator=torch.Generator().manual_seed(0))
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    outputs = []
    for ids in ({}, {"input_ids": torch.full((2, 1), AUDIO_OUT)}):
        cache = model(**batch, use_cache=True).past_key_values
        outputs.append(model(**ids, audio_input_ids=column, attention_mask=mask, past_key_values=cache).logits)
    torch.testing.assert_close(outputs[0], outputs[1])


@torch.no_grad()
def test_decoding_with_a_cache_is_one_pass_over_the_whole(model):
    """A left-padded batch: one pass up to the answer, then one position at a time, text or audio."""
    rows = [make_row(9, [], make_codes(6, 4)), make_row(4, [make_codes(3, 5)], make_codes(6, 6))]
    batch = collate(*rows)
    whole = model(**batch)
    ids, mask, codes = batch["input_ids"], batch["attention_mask"], batch["audio_input_ids"]
    start = (
        ids.shape[1] - len(make_codes(6, 4).T) - K - 1 - 2
    )  # of the answer's columns; <|audio_eos|> and an end token follow
    counts = [int((row[:start] == AUDIO_OUT).sum() + (row[:start] == DELAY).sum()) for row in ids]
    output = model(
        ids[:, :start],
        mask[:, :start],
        codes[:, : max(counts)],
        torch.arange(max(counts))[None] < torch.tensor(counts)[:, None],
        use_cache=True,
    )
    assert_close_where_real(output.logits, whole.logits[:, :start], mask[:, :start])
    for position in range(start, ids.shape[1]):
        in_audio = int(ids[0, position]) in (AUDIO_OUT, DELAY)
        column = torch.stack([codes[row, counts[row]] for row in range(2)])[:, None] if in_audio else None
        step = {"audio_input_ids": column} if in_audio else {"input_ids": ids[:, position : position + 1]}
        counts = [count + in_audio for count in counts]
        output = model(**step, attention_mask=mask[:, : position + 1], past_key_values=output.past_key_values)
        torch.testing.assert_close(output.logits[:, 0], whole.logits[:, position], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.text_logits[:, 0], whole.text_logits[:, position], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_eager_attention_and_torch_s_attention_agree(model):
    """The default is a fused kernel of torch, which calls no separate softmax."""
    eager = HiggsAudioForConditionalGeneration(make_config(attn_implementation="eager")).eval()
    eager.load_state_dict(model.state_dict())
    batch, calls = collate(without_reference(), with_one_reference(), with_two_references()), Counter()
    with TorchCalls(lambda function, *_: calls.update([function.__name__])):
        wanted = model(**batch).logits
        kernels = ("scaled_dot_product_attention", "softmax")
        assert [calls[name] for name in kernels] == [len(model.model.layers), 0]
        assert_close_where_real(eager(**batch).logits, wanted, batch["attention_mask"])
        assert [calls[name] for name in kernels] == [len(model.model.layers)] * 2


@torch.no_grad()
def test_logits_can_be_computed_for_the_last_positions_only(model):
    batch = collate(with_one_reference())
    whole, kept = model(**batch), model(**batch, logits_to_keep=2)
    torch.testing.assert_close(kept.logits, whole.logits[:, -2:])
    torch.testing.assert_close(kept.text_logits, whole.text_logits[:, -2:])


@torch.no_grad()
def test_hidden_states_are_the_input_of_every_layer_and_the_last_state(model):
    states = model(**collate(with_one_reference()), output_hidden_states=True).hidden_states
    assert len(states) == len(model.model.layers) + 1
    torch.testing.assert_close(model.text_lm_head(states[-1]), model(**collate(with_one_reference())).text_logits)
