"""Tests that every published layout loads to the same bits; names and configs are converted in both directions."""

import json

import pytest
import torch
from stored_layouts import (
    BOSON_CONFIG,
    FLAT_CONFIG,
    FORMS,
    LLAMA3,
    NAMES,
    READ,
    SIZES,
    K,
    V,
    assert_same_weights,
    change,
    set_config,
    write_layout,
)
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration, HiggsAudioModel
from higgs_audio.checkpoint import layouts
from higgs_audio.errors import CheckpointError, PromptError


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_loads_to_the_same_bits(form, model, tmp_path):
    loaded, report = HiggsAudioForConditionalGeneration.from_pretrained(
        FORMS[form](tmp_path / "x", model), output_loading_info=True
    )
    assert_same_weights(loaded, model.state_dict())
    assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    assert not loaded.training
    assert loaded.name_or_path == str(tmp_path / "x")


@pytest.mark.parametrize("form", FORMS)
def test_the_base_model_loads_from_every_layout_without_the_heads(form, model, tmp_path):
    assert_same_weights(HiggsAudioModel.from_pretrained(FORMS[form](tmp_path / "x", model)), model.model.state_dict())


def test_a_base_model_that_was_saved_alone_does_not_load_as_a_whole_model(model, tmp_path):
    model.model.save_pretrained(tmp_path / "backbone")
    assert_same_weights(HiggsAudioModel.from_pretrained(tmp_path / "backbone"), model.model.state_dict())
    with pytest.raises(CheckpointError, match=r"2 missing weights .*audio_lm_head\.weight, text_lm_head\.weight"):
        HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "backbone")


@torch.no_grad()
def test_logits_of_the_transformers_layout_equal_those_of_transformers(model, tmp_path):
    torch.manual_seed(1)
    theirs = HiggsAudioV2ForConditionalGeneration(HiggsAudioV2Config(**FLAT_CONFIG), use_text_head=True).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    ids = torch.tensor([[305, 1, 2, 3, 4, 5, 6, 7, 302] + [301] * 5 + [9, 8]])
    codes = torch.randint(0, V + 2, (1, 5, K))
    given = {"input_ids": ids, "audio_input_ids": codes, "audio_input_ids_mask": torch.ones(1, 5, dtype=torch.bool)}
    torch.testing.assert_close(ours(**given).logits.flatten(2), theirs(**given).logits, atol=1e-5, rtol=0)


def test_a_model_without_a_text_head_loads_and_cannot_generate_text(model, tmp_path):
    folder = change(write_layout(tmp_path / "x", model, "transformers"), text_lm_head__weight=None)
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder)
    heads = {name: tensor for name, tensor in model.state_dict().items() if name != "text_lm_head.weight"}
    assert_same_weights(loaded, heads)
    ids = torch.tensor([[305, 1, 2, 3, 302]])
    assert loaded(ids).text_logits is None
    output = loaded.generate(ids, max_frames=3, eos_token_id=loaded.config.audio_eos_token_id, seed=0)
    assert output[1][0].shape[0] == K
    with pytest.raises(PromptError, match="no text head"):
        loaded.generate(ids[:, :-1], max_new_tokens=2)
    with pytest.raises(PromptError, match="no text head"):
        loaded(ids, labels=ids)
    loaded.save_pretrained(tmp_path / "saved")
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "saved"), heads)


def test_a_text_head_may_be_missing_in_the_transformers_layout_only(model, tmp_path):
    for layout in ("boson", "native"):
        folder = write_layout(tmp_path / layout, model, layout)
        change(folder, **{NAMES[layout]("text_lm_head.weight").replace(".", "__"): None})
        with pytest.raises(CheckpointError, match=r"1 missing weights .*text_lm_head\.weight"):
            HiggsAudioForConditionalGeneration.from_pretrained(folder)


# The published checkpoint.


def published_names() -> list[str]:
    """The 397 names in the index of the original checkpoint."""
    layer = [f"self_attn.{part}_proj" for part in "qkvo"]
    layer += [f"{mlp}.{part}_proj" for mlp in ("mlp", "audio_mlp") for part in ("gate", "up", "down")]
    layer += [f"{kind}{norm}" for kind in ("", "audio_") for norm in ("input_layernorm", "post_attention_layernorm")]
    names = ["embed_tokens", "norm", "audio_codebook_embeddings"]
    names += [f"audio_decoder_proj.{head}_lm_head" for head in ("text", "audio")]
    return [f"{name}.weight" for name in (*names, *(f"layers.{i}.{part}" for i in range(28) for part in layer))]


@pytest.fixture(scope="module")
def published_shapes():
    with torch.device("meta"):
        model = HiggsAudioForConditionalGeneration(HiggsAudioConfig())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_published_checkpoint_has_397_tensors_and_5771283456_parameters(published_shapes):
    names = published_names()
    assert len(names) == len(set(names)) == 397
    parts, unknown = layouts.match_names(names, layouts.BOSON)
    assert unknown == []
    assert parts.keys() == published_shapes.keys()
    assert {name: layouts.BOSON.stored_name(name) for name in parts} == {
        name: found[0] for name, found in parts.items()
    }
    assert sum(torch.Size(shape).numel() for shape in published_shapes.values()) == 5_771_283_456
    assert published_shapes["model.embed_audio_tokens.embed_audio_tokens.weight"] == (8 * 1026, 3072)


def test_the_names_of_transformers_equal_those_of_our_module_tree(published_shapes):
    with torch.device("meta"):
        theirs = HiggsAudioV2ForConditionalGeneration(HiggsAudioV2Config(codebook_size=1026), use_text_head=True)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()} == published_shapes
    parts, unknown = layouts.match_names(published_shapes, layouts.TRANSFORMERS)
    assert (unknown, parts) == ([], {name: [name] for name in published_shapes})


@pytest.mark.parametrize("layout", ["boson", "early"])
def test_weights_of_the_audio_tower_are_mapped_in_both_original_layouts(layout):
    prefix = "model." if layout == "early" else ""
    names = [f"{prefix}audio_tower.conv1.bias", f"{prefix}audio_encoder_proj.linear.weight"]
    parts, unknown = layouts.match_names(names, layouts.LAYOUTS[layout])
    assert unknown == []
    assert list(parts) == ["model.audio_encoder_proj.linear.weight", "model.audio_tower.conv1.bias"] or set(parts) == {
        "model.audio_tower.conv1.bias",
        "model.audio_encoder_proj.linear.weight",
    }
    assert [layouts.LAYOUTS[layout].stored_name(ours) for ours in parts] == [found[0] for found in parts.values()]


# Configs.


def test_the_default_config_equals_the_published_config_of_both_layouts():
    default = HiggsAudioConfig()
    text = default.text_config.to_dict()
    nested = {
        **BOSON_CONFIG,
        "audio_codebook_size": 1024,
        "audio_stream_bos_id": 1024,
        "audio_stream_eos_id": 1025,
        "audio_dual_ffn_layers": list(range(28)),
        "audio_in_token_idx": 128015,
        "audio_out_token_idx": 128016,
        "audio_out_bos_token_id": 128013,
        "audio_eos_token_id": 128012,
        "pad_token_id": 128001,
        "torch_dtype": "bfloat16",
    }
    sizes = {name: text[name] for name in (*SIZES, "max_position_embeddings")}
    nested["text_config"] = {**sizes, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True}
    flat = {
        "model_type": "higgs_audio_v2",
        "codebook_size": 1026,
        "dtype": "bfloat16",
    }  # and defaults
    for config in (nested, flat):
        read = HiggsAudioConfig(**layouts.read_fields(config, "x"))
        for name in HiggsAudioConfig.__annotations__:
            if name not in (
                "text_config",
                "audio_encoder_config",
            ):  # kept if it is present
                assert getattr(read, name) == getattr(default, name), name
        for name in (*READ, "rope_parameters", "max_position_embeddings"):
            assert getattr(read.text_config, name) == getattr(default.text_config, name), name


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_config_survives_a_round_trip_through_every_layout(layout, model):
    fields = {**model.config.to_dict(), "model_type": "higgs_audio", "codec": "org/tokenizer"}
    there = layouts.write_fields(fields, layouts.LAYOUTS[layout], "x")
    back = HiggsAudioConfig(**layouts.read_fields(json.loads(json.dumps(there)), "x"))
    for name in HiggsAudioConfig.__annotations__:
        if name not in ("text_config", "codec"):
            assert getattr(back, name) == getattr(model.config, name), name
    assert back.codec == "org/tokenizer"
    for name in (*READ, "rope_parameters", "max_position_embeddings", "hidden_act", "mlp_bias"):
        assert getattr(back.text_config, name) == getattr(model.config.text_config, name), name


def test_rotary_frequencies_of_both_published_configs_are_bit_equal():
    """The parameters differ by a factor of 8, a power of two, so that rounding is the same."""
    theirs, ours = HiggsAudioV2Config(), HiggsAudioConfig().text_config
    assert theirs.rope_parameters["original_max_position_embeddings"] == 1024
    frequencies = [ROPE_INIT_FUNCTIONS["llama3"](config)[0] for config in (theirs, ours)]
    assert torch.equal(*frequencies)


@pytest.mark.parametrize(("size", "layout"), [(s, n) for s in (V, V + 2) for n in ("boson", "transformers")])
def test_the_codebook_size_may_include_bos_and_eos_or_not(size, layout, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, layout)
    set_config(folder, **{"codebook_size" if layout == "transformers" else "audio_codebook_size": size})
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(folder), model.state_dict())


def test_the_wrong_bos_id_of_transformers_is_corrected_and_others_are_kept():
    assert layouts.read_fields({"model_type": "higgs_audio_v2", "codebook_size": 1026}, "x")["bos_token_id"] == 128000
    assert layouts.read_fields({**FLAT_CONFIG, "bos_token_id": 305}, "x")["bos_token_id"] == 305
