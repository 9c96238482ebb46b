"""Tests of variants of the language model, gradient checkpointing, files, and invalid inputs."""

import pytest
import torch
from oracle import (
    V,
    fill,
    make_config,
)
from rows import (
    assert_close_where_real,
    collate,
    training_batch,
    with_one_reference,
    with_two_references,
    without_reference,
)

from higgs_audio.errors import CodesError, OptionError, PromptError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration


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
    """Rotary frequencies and codebook offsets are not stored, and loading builds the model on the meta device."""
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
    """Without the check, V + 2 in codebook k would be read as id 0 of codebook k + 1."""
    batch = collate(with_one_reference())
    batch["audio_input_ids"][0, 3, 4] = given
    with pytest.raises(CodesError):
        model(**batch)


def test_columns_of_floats_are_a_codes_error(model):
    batch = collate(with_one_reference())
    with pytest.raises(CodesError, match="expected integers"):
        model(batch["input_ids"], audio_input_ids=batch["audio_input_ids"].float())


def test_labels_of_another_shape_than_what_they_label_are_rejected(model):
    """Without the check, labels that are one position short would be compared with neighboring positions."""
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
