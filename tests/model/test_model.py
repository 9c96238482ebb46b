"""Tests of the language model: transformers' model is the oracle for logits, a loop over every cell for the losses."""

import math
from dataclasses import dataclass

import pytest
import torch
from oracle import (
    AUDIO_EOS,
    AUDIO_IN,
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BEGIN,
    BOS,
    DELAY,
    EOS,
    EOT,
    PAD,
    K,
    V,
    fill,
    language_twin,
    make_codes,
    make_config,
)
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import IGNORE_INDEX, apply_delay, delay_labels
from higgs_audio.errors import CodesError, OptionError, PromptError
from higgs_audio.model.layers import eager_attention
from higgs_audio.model.model import HiggsAudioForConditionalGeneration


@pytest.fixture(scope="module")
def oracle(model):
    """transformers' model with the same weights."""
    return language_twin(model)


@dataclass
class Row:
    """One conversation: ids and labels [T], columns and their labels [F, K]."""

    ids: list
    labels: list
    columns: torch.Tensor
    column_labels: torch.Tensor


def make_row(num_text, references=(), answer=None, placeholder=AUDIO_OUT):
    """A text after references, which are not trained, and an answer, which is."""
    row = Row([BEGIN], [IGNORE_INDEX], torch.zeros(0, K, dtype=torch.long), torch.zeros(0, K, dtype=torch.long))
    sounds = [(codes, False) for codes in references] + ([(answer, True)] if answer is not None else [])
    for codes, trained in sounds:
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
    """Rows as the keyword arguments of a batch: ids padded on the left, columns on the right."""
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
    """Rows of different lengths, with no, one and two references before the answer."""
    return collate(
        make_row(9, [], make_codes(4, 4)),
        make_row(3, [make_codes(7, 5)], make_codes(9, 6)),
        make_row(5, [make_codes(2, 7), make_codes(5, 8)], make_codes(1, 9)),
        labels=True,
    )


def assert_close_where_real(ours, theirs, mask, bound=1e-5):
    """Equal at the positions that are not padding, to `bound` of the largest value."""
    ours, theirs = ours.detach()[mask.bool()], theirs.detach()[mask.bool()]
    assert float((ours - theirs).abs().max()) < bound * float(theirs.abs().max())


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
def test_logits_are_those_of_transformers(model, oracle, rows):
    batch = collate(*(row() for row in rows))
    ours = model(**batch)
    theirs = oracle(**batch, output_hidden_states=True)
    assert ours.logits.shape == (*batch["input_ids"].shape, K, V + 2)
    assert_close_where_real(ours.logits.flatten(2), theirs.logits, batch["attention_mask"])
    assert_close_where_real(ours.text_logits, oracle.text_lm_head(theirs.hidden_states[-1]), batch["attention_mask"])


def test_losses_are_those_of_transformers_which_sums_over_codebooks(model, oracle):
    batch = training_batch()
    ours = model(**batch)
    theirs = oracle(**batch)
    torch.testing.assert_close(K * ours.audio_loss + ours.text_loss, theirs.loss, rtol=1e-5, atol=0)


def test_gradients_are_those_of_transformers(model, oracle):
    batch = training_batch()
    ours, theirs = model(**batch), oracle(**batch)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(theirs.loss, list(oracle.parameters()))
    wanted = dict(zip(dict(oracle.named_parameters()), wanted, strict=True))
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


def spoil(model, names):
    """Sets the parameters of each layer whose names begin with one of `names` to NaN; returns what restores them."""
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
    undo = spoil(model, TEXT_SIDE)
    try:
        output = model(**step, attention_mask=mask, past_key_values=cache)
        assert bool(output.logits.isfinite().all())
        assert not bool(model(**batch).logits.isfinite().any()), "the text side was not spoiled"
    finally:
        undo()


@torch.no_grad()
def test_text_uses_no_feed_forward_or_norm_of_audio(model):
    undo = spoil(model, AUDIO_SIDE)
    try:
        assert bool(model(**collate(without_reference())).text_logits.isfinite().all())
        assert not bool(model(**collate(with_one_reference())).logits[:, -1].isfinite().any())
    finally:
        undo()


@torch.no_grad()
def test_a_step_of_columns_alone_equals_a_step_of_placeholders_and_columns(model):
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
    )  # of the answer's columns; <|audio_eos|> and an end follow
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
def test_eager_attention_and_torch_s_attention_agree(model, monkeypatch):
    calls = []

    def count(*args, **options):
        calls.append(1)
        return eager_attention(*args, **options)

    monkeypatch.setattr("higgs_audio.model.layers.eager_attention", count)
    eager = HiggsAudioForConditionalGeneration(make_config(attn_implementation="eager")).eval()
    eager.load_state_dict(model.state_dict())
    batch = collate(without_reference(), with_one_reference(), with_two_references())
    wanted = model(**batch).logits
    assert not calls, "the default is a kernel of torch"
    assert_close_where_real(eager(**batch).logits, wanted, batch["attention_mask"])
    assert len(calls) == len(model.model.layers)


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


# The loss


def slow_losses(output, batch, config):
    """The mean cross-entropy of text and of each codebook, [K], cell by cell, from the logits one position earlier."""
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
    assert abs(float(output.text_loss) - math.log(320)) < 0.3  # of nine labels only


CERTAIN = 50.0  # logit of the ids that the model below predicts; the others are 0


@pytest.fixture
def scripted():
    """A model as wide as its audio logits, whose audio logits a test sets as `scripted.wanted` [B, T, K, V + 2]."""
    model = HiggsAudioForConditionalGeneration(make_config({"hidden_size": K * (V + 2)})).eval()
    with torch.no_grad():
        model.audio_lm_head.weight.copy_(torch.eye(K * (V + 2)))

    def set_hidden(module, inputs, output):
        output.last_hidden_state = model.wanted.flatten(2)
        return output

    model.model.register_forward_hook(set_hidden)
    return model


def certain_logits(batch, offset, ids=range(V + 2)):
    """Logits that predict, at each position, the column `offset` placeholders later in the row, for codes in `ids`."""
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


# Training, variants and files


def test_gradient_checkpointing_changes_no_gradient():
    model = fill(HiggsAudioForConditionalGeneration(make_config())).train()
    batch, parameters = training_batch(), list(model.parameters())
    plain = torch.autograd.grad(model(**batch).loss, parameters)
    calls = []
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # renamed in 5.23
    loss = model(**batch).loss
    assert len(calls) == 1
    loss.backward()
    hook.remove()
    assert len(calls) == 2, "no layer was recomputed: checkpointing is off"
    for parameter, gradient in zip(parameters, plain, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_the_adapter_type_stack_has_one_feed_forward_for_text_and_audio():
    model = fill(HiggsAudioForConditionalGeneration(make_config(audio_adapter_type="stack")))
    assert model.config.audio_dual_ffn_layers == []
    assert not [name for name in model.state_dict() if "audio_mlp" in name or "audio_input_layernorm" in name]
    batch = training_batch()
    output = model(**batch)
    output.loss.backward()
    assert bool(output.loss.isfinite())
    assert all(parameter.grad is not None for parameter in model.parameters())
    dual = HiggsAudioForConditionalGeneration(make_config()).eval()
    weights = model.state_dict()
    weights |= {
        name: weights[name.replace("audio_", "")]
        for name in dual.state_dict()
        if ".layers." in name and "audio_" in name
    }
    dual.load_state_dict(weights, strict=True)
    assert_close_where_real(dual(**batch).logits, output.logits, batch["attention_mask"])


def test_layers_outside_audio_dual_ffn_layers_have_one_feed_forward():
    model = HiggsAudioForConditionalGeneration(make_config(audio_adapter_type="dual_ffn", audio_dual_ffn_layers=[1]))
    assert [layer.audio_mlp is not None for layer in model.model.layers] == [False, True]
    assert bool(model(**training_batch()).loss.isfinite())


@torch.no_grad()
def test_saving_and_loading_changes_no_bit(model, tmp_path):
    """Rotary frequencies and codebook offsets are in no file, and loading builds the model on the meta device."""
    model.save_pretrained(tmp_path)
    loaded, info = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = collate(without_reference(), with_two_references())
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert torch.equal(loaded(**batch).text_logits, model(**batch).text_logits)
    assert loaded.config.audio_placeholder_ids == model.config.audio_placeholder_ids
    assert loaded.config.text_config.rope_parameters == model.config.text_config.rope_parameters


# Invalid input


def test_a_row_with_more_or_fewer_placeholders_than_columns_is_a_prompt_error(model):
    """Counted in each row: summed over the batch, a missing column of one row would cancel an extra one of another."""
    batch = collate(with_one_reference(), with_two_references())
    counts = batch["audio_input_ids_mask"].sum(1)
    batch["audio_input_ids_mask"][0, int(counts[0])] = True
    batch["audio_input_ids_mask"][1, int(counts[1]) - 1] = False
    with pytest.raises(PromptError, match=r"placeholders per row \[15, 32\], columns of codes per row \[16, 31\]"):
        model(**batch)


def test_placeholders_without_columns_and_columns_without_placeholders_are_prompt_errors(model):
    with_audio, without = collate(with_one_reference()), collate(without_reference())
    with pytest.raises(PromptError, match="15 audio placeholders"):
        model(with_audio["input_ids"])
    with pytest.raises(PromptError, match=r"placeholders per row \[0\]"):
        model(without["input_ids"], audio_input_ids=with_audio["audio_input_ids"])
    with pytest.raises(PromptError, match="neither"):
        model()


def test_columns_of_the_wrong_shape_are_a_codes_error(model):
    batch = collate(with_one_reference())
    for columns in (batch["audio_input_ids"][..., :7], batch["audio_input_ids"][0]):
        with pytest.raises(CodesError):
            model(batch["input_ids"], audio_input_ids=columns)


@pytest.mark.parametrize("given", [V + 2, -1])
def test_ids_outside_a_codebook_are_a_codes_error(model, given):
    """Without the check, V + 2 in codebook k was read as id 0 of codebook k + 1."""
    batch = collate(with_one_reference())
    batch["audio_input_ids"][0, 3, 4] = given
    with pytest.raises(CodesError):
        model(**batch)


def test_columns_of_floats_are_a_codes_error(model):
    batch = collate(with_one_reference())
    with pytest.raises(CodesError, match="expected integers"):
        model(batch["input_ids"], audio_input_ids=batch["audio_input_ids"].float())


def test_labels_of_another_shape_than_what_they_label_are_refused(model):
    """Without the check, labels that were one position short were those of the neighbouring positions."""
    batch = collate(with_one_reference())
    ids, columns = batch["input_ids"], batch["audio_input_ids"]
    for labels in (ids[:, 1:], ids[0], ids.repeat(2, 1), ids[..., None]):
        with pytest.raises(PromptError, match=r"labels .* for input_ids"):
            model(**batch, labels=labels)
    for labels in (columns[:, 1:], columns[..., 1:], columns[0], columns[..., 0]):
        with pytest.raises(CodesError, match=r"audio_labels .* for audio_input_ids"):
            model(**batch, audio_labels=labels)
    with pytest.raises(CodesError, match="for audio_input_ids None"):
        model(ids[:, :1], audio_labels=columns)
    for labels in ({"labels": ids[:, :1]}, {"audio_labels": columns[:, :1]}):
        with pytest.raises(PromptError, match="labels without input_ids"):
            model(audio_input_ids=columns[:, :1], **labels)


def test_a_contradiction_in_the_config_is_an_option_error():
    with pytest.raises(OptionError, match="did you mean 'dual_ffn'"):
        make_config(audio_adapter_type="dual_fnn")
    with pytest.raises(OptionError, match="audio_stream_bos_id"):
        make_config(audio_stream_bos_id=1024)
