"""Tests of invalid checkpoints: the error names the file, the field or the weights."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_layouts import (
    BOSON_CONFIG,
    FLAT_CONFIG,
    NAMES,
    change,
    set_config,
    shard,
    split,
    write_json,
    write_layout,
)

from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.errors import CheckpointError, HiggsAudioError


def assert_rejected(folder: Path, match: str, kind: type[HiggsAudioError] = CheckpointError, **options) -> None:
    """Asserts that loading a folder raises an error of this kind."""
    with pytest.raises(kind, match=match):
        HiggsAudioForConditionalGeneration.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; allowed: higgs_audio, higgs_audio_v2"),
        ({"model_type": "higs_audio"}, "did you mean 'higgs_audio'"),
        ({"use_rq_transformer": True}, "use_rq_transformer=True"),
        ({"use_audio_out_self_attention": 1}, "use_audio_out_self_attention=1"),
        ({"use_audio_out_embed_projector": True}, "use_audio_out_embed_projector=True"),
        ({"audio_embed_avg": True}, "audio_embed_avg=True"),
        ({"audio_decoder_proj_num_layers": 2}, "audio_decoder_proj_num_layers=2"),
        ({"use_delay_pattern": False}, "use_delay_pattern=False"),
        ({"audio_dual_ffn_layers": [1]}, "1 of 2 layers"),
        ({"audio_codebook_size": 17}, "codebooks of 17 with stream bos 16 and stream eos 17"),
        ({"audio_stream_eos_id": 18}, "codebooks of 16 with stream bos 16 and stream eos 18"),
        ({"text_config": None}, "no text_config"),
        ({"audio_adapter_type": "dual_fnn"}, "did you mean 'dual_ffn'"),
    ],
)
def test_an_invalid_config_is_rejected_by_the_name_of_its_field(fields, message, model, tmp_path):
    folder = set_config(write_layout(tmp_path / "x", model, "boson"), **fields)
    with pytest.raises(HiggsAudioError, match=re.escape(message)):
        HiggsAudioForConditionalGeneration.from_pretrained(folder)


TEXT = BOSON_CONFIG["text_config"]


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ("boson", {"audio_num_codebooks": "8"}),
        ("boson", {"audio_num_codebooks": 10**12}),
        ("boson", {"audio_codebook_size": []}),
        ("boson", {"audio_codebook_size": None}),
        ("boson", {"audio_stream_bos_id": None}),
        ("boson", {"audio_dual_ffn_layers": 3}),
        ("boson", {"audio_dual_ffn_layers": ["0", "1"]}),
        ("boson", {"audio_adapter_type": ["dual_ffn"]}),
        ("boson", {"audio_encoder_config": {"d_model": "wide"}}),
        ("boson", {"torch_dtype": 16}),
        ("boson", {"text_config": {"vocab_size": 320}}),
        ("boson", {"text_config": {**TEXT, "vocab_size": "320"}}),
        ("boson", {"text_config": {**TEXT, "hidden_size": "x"}}),
        ("boson", {"text_config": {**TEXT, "num_attention_heads": 0}}),
        ("boson", {"text_config": {**TEXT, "num_hidden_layers": None}}),
        ("boson", {"text_config": {**TEXT, "rope_scaling": "llama3"}}),
        ("boson", {"text_config": {**TEXT, "rope_scaling": {"rope_type": "spiral"}}}),
        ("boson", {"text_config": {**TEXT, "rope_theta": [5e5]}}),
        ("transformers", {"codebook_size": "18"}),
        ("transformers", {"num_codebooks": None}),
        ("transformers", {"hidden_size": -32}),
        ("transformers", {"rope_parameters": [1]}),
        ("transformers", {"higgs_audio": 3}),
    ],
)
def test_a_field_of_another_type_raises_an_error_of_this_package(layout, fields, model, tmp_path):
    folder = set_config(write_layout(tmp_path / "x", model, layout), **fields)
    assert_rejected(folder, ".", HiggsAudioError)
    with suppress(HiggsAudioError):  # some fields are only wrong for the model
        HiggsAudioConfig.from_pretrained(folder)


@pytest.mark.parametrize("layout", NAMES)
def test_weights_that_do_not_fit_are_listed_by_their_names_in_the_files(layout, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, layout)
    missing, wrong = NAMES[layout]("model.layers.1.mlp.up_proj.weight"), NAMES[layout]("audio_lm_head.weight")
    extra = missing.replace("up_proj", "gate_proj").replace(".weight", ".bias")
    changes = {missing: None, wrong: torch.zeros(3, 32), extra: torch.zeros(3), "audio_encoder.w": torch.zeros(1)}
    change(folder, **{name.replace(".", "__"): tensor for name, tensor in changes.items()})
    assert_rejected(folder, re.escape(f"1 missing weights for HiggsAudioForConditionalGeneration: {missing};"))
    assert_rejected(
        folder, f"2 unexpected weights .*audio_encoder.w.*{re.escape(extra)}|2 unexpected weights .*{extra}"
    )
    assert_rejected(
        folder, re.escape(f"1 mismatched weights for HiggsAudioForConditionalGeneration: {wrong} [3, 32] instead")
    )


def test_a_long_list_of_weights_is_truncated_and_counted(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "native")
    gone = [name for name in load_file(folder / "model.safetensors") if ".layers." in name]
    change(folder, **{name.replace(".", "__"): None for name in gone})
    assert_rejected(folder, "28 missing weights .* and 8 more")


def truncated(folder):
    file = sorted(folder.glob("model-*"))[1]
    file.write_bytes(file.read_bytes()[:-10])


def overwritten(folder):
    sorted(folder.glob("model-*"))[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def indexed(content):
    return lambda folder: (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")


def lists_extra_weight(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["norm.bias"] = "model-00001-of-00003.safetensors"
    write_json(folder / "model.safetensors.index.json", index)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "model-00002-of-00003.safetensors is not a complete safetensors file"),
        (overwritten, "model-00001-of-00003.safetensors is not a complete safetensors file"),
        (lambda folder: (folder / "model-00003-of-00003.safetensors").unlink(), "lacks model-00003-of-00003"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "neither model.safetensors nor"),
        (indexed("{"), "cannot be read as JSON"),
        (indexed('{"weight_map": {"norm.weight": "../model.safetensors"}}'), "must contain"),
        (indexed('{"weight_map": []}'), "must contain"),
        (indexed('{"weight_map": {}}'), "must contain"),
        (indexed('{"weight_map": {"norm.weight": ""}}'), "must contain"),
        (indexed(json.dumps({"weight_map": {"norm.weight": "x" * 300}})), "must contain"),
        (indexed(json.dumps({"weight_map": {"norm.weight": "a\0b"}})), "must contain"),
        (lists_extra_weight, "lists 1 weights that no file has: norm.bias"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
    ],
)
def test_damaged_files_are_rejected(damage, message, model, tmp_path):
    folder = shard(write_layout(tmp_path / "x", model, "boson"))
    damage(folder)
    assert_rejected(folder, re.escape(message))


def test_half_of_a_frozen_table_is_rejected(model, tmp_path):
    folder = split(write_layout(tmp_path / "x", model, "boson"))
    change(folder, embed_tokens__embedding_trainable__weight=None)
    assert_rejected(folder, "embed_tokens.embedding_frozen.weight are not one complete embed_tokens.weight")


def test_parts_of_a_table_that_do_not_fit_together_are_rejected(model, tmp_path):
    folder = split(write_layout(tmp_path / "x", model, "boson"))
    for part in (torch.zeros(220, 31), torch.zeros(220), torch.zeros(220, 32, 1)):
        change(folder, embed_tokens__embedding_trainable__weight=part)
        assert_rejected(folder, "embed_tokens.embedding_frozen.weight F32.*do not fit together|do not fit together")


def test_parts_of_a_table_of_two_types_are_rejected(model, tmp_path):
    """Joining them would change the bits of one part, and conversion must preserve all bits."""
    folder = split(write_layout(tmp_path / "x", model, "boson"))
    change(folder, embed_tokens__embedding_trainable__weight=torch.zeros(220, 32, dtype=torch.bfloat16))
    assert_rejected(folder, r"embedding_frozen.weight F32 \[100, 32\], .*embedding_trainable.weight BF16 \[220, 32\]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_of_integers_are_rejected(dtype, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    change(folder, norm__weight=torch.ones(32, dtype=dtype))
    assert_rejected(folder, "1 not floating-point weights for .*: norm.weight (I8|I64|BOOL)")


@pytest.mark.parametrize("name", [None, 3, "", "x" * 300, "a/b/c", "one/two" * 100, b"nano"])
def test_an_invalid_name_raises_a_checkpoint_error(name):
    assert_rejected(name, "no model ")


@pytest.mark.parametrize("content", ["", "[]", '"hot"', "{"])
def test_an_invalid_generation_config_raises_a_checkpoint_error(content, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    (folder / "generation_config.json").write_text(content)
    assert_rejected(folder, "generation_config.json")


def test_a_config_of_one_layout_and_weights_of_another_are_rejected(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    write_json(folder / "config.json", FLAT_CONFIG)
    assert_rejected(
        folder, "model_type 'higgs_audio_v2', but the layout of the weights is boson; give files of one layout"
    )


def test_weights_of_no_layout_are_rejected(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "native")
    save_file({"lm_head.weight": torch.zeros(2)}, folder / "model.safetensors")
    assert_rejected(folder, "the layout of the weights is unknown")


@pytest.mark.parametrize("dual", [None, [0, 1]])
def test_a_config_of_too_many_layers_is_rejected_before_any_is_built(dual, tiny_checkpoint, tmp_path):
    """Earlier, a config of 10**12 layers exhausted the memory of the machine."""
    folder = tmp_path / "deep"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = 10**12
    config["audio_dual_ffn_layers"] = dual
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(HiggsAudioError, match="1000000000000"):
        HiggsAudioForConditionalGeneration.from_pretrained(folder)
