"""Every published layout loads to the same bits, and what does not fit is refused by name."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration, HiggsAudioModel
from higgs_audio.checkpoint import layouts
from higgs_audio.errors import CheckpointError, HiggsAudioError, OptionError, PromptError

K, V = 8, 16
IDS = {
    "audio_bos_token_id": 306,
    "audio_eos_token_id": 303,
    "audio_out_bos_token_id": 302,
    "audio_delay_token_id": 307,
    "audio_in_token_idx": 300,
    "audio_out_token_idx": 301,
    "pad_token_id": 304,
    "bos_token_id": 305,
    "eos_token_id": 308,
}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 305,
    "eos_token_id": 309,
}
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
READ = tuple(name for name in SIZES if "token" not in name)  # nothing reads the trunk's own token ids
# config.json of the original, with sizes of its own; the token ids that it has no field for cannot be told from it.
BOSON_CONFIG = {
    "_name_or_path": "model_initialization/x",
    "architectures": ["HiggsAudioModel"],
    "audio_adapter_type": "dual_ffn_fast_forward",
    "audio_bos_token": "<|audio_bos|>",
    "audio_codebook_size": V,
    "audio_decoder_proj_num_layers": 0,
    "audio_dual_ffn_layers": [0, 1],
    "audio_embed_avg": False,
    "audio_encoder_config": {"model_type": "higgs_audio_encoder", "d_model": 1280},
    "audio_eos_token": "<|audio_eos|>",
    "audio_eos_token_id": 303,
    "audio_ffn_hidden_size": 32,
    "audio_ffn_intermediate_size": 48,
    "audio_in_token": "<|AUDIO|>",
    "audio_in_token_idx": 300,
    "audio_num_codebooks": K,
    "audio_out_bos_token": "<|audio_out_bos|>",
    "audio_out_bos_token_id": 302,
    "audio_out_token": "<|AUDIO_OUT|>",
    "audio_out_token_idx": 301,
    "audio_stream_bos_id": V,
    "audio_stream_eos_id": V + 1,
    "audio_tokenizer_config": None,
    "encode_audio_in_tokens": True,
    "encode_whisper_embed": False,
    "hidden_size": 32,
    "model_type": "higgs_audio",
    "pad_token_id": 304,
    "rq_transformer_hidden_size": None,
    "rq_transformer_num_hidden_layers": 3,
    "skip_audio_tower": True,
    "text_config": {
        "_name_or_path": "x",
        "model_type": "llama",
        **SIZES,
        "max_position_embeddings": 131072,
        "num_beams": 1,
        "rope_scaling": LLAMA3,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "use_audio_out_embed_projector": False,
    "use_audio_out_self_attention": 0,
    "use_delay_pattern": True,
    "use_rq_transformer": False,
}
FLAT_CONFIG = {
    "architectures": ["HiggsAudioV2ForConditionalGeneration"],
    "model_type": "higgs_audio_v2",
    **SIZES,
    "max_position_embeddings": 2048,
    "num_codebooks": K,
    "codebook_size": V + 2,
    "audio_token_id": 301,
    "audio_bos_token_id": 302,
    "audio_delay_token_id": 307,
    "audio_stream_bos_id": V,
    "audio_stream_eos_id": V + 1,
    "pad_token_id": 304,
    "eos_token_id": 308,
    "dtype": "float32",
    "rope_parameters": {
        "rope_theta": 500000.0,
        **LLAMA3,
        "high_freq_factor": 0.5,
        "low_freq_factor": 0.125,
        "original_max_position_embeddings": 1024,
    },
}


def make_model(**fields) -> HiggsAudioForConditionalGeneration:
    """Random weights that give every position logits of its own."""
    text = {**SIZES, "max_position_embeddings": 131072, "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    config = HiggsAudioConfig(
        text_config=text,
        audio_num_codebooks=K,
        audio_codebook_size=V,
        audio_stream_bos_id=V,
        audio_stream_eos_id=V + 1,
        **{**IDS, **fields},
    )
    torch.manual_seed(0)
    model = HiggsAudioForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
            else:
                weight.copy_(1 + 0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


# Names of the layouts, written down once more, without the table that is tested.


def boson_name(name: str) -> str:
    if name.startswith(("text_lm_head", "audio_lm_head")):
        return f"audio_decoder_proj.{name}"
    return name.removeprefix("model.").replace("embed_audio_tokens.embed_audio_tokens", "audio_codebook_embeddings")


def early_name(name: str) -> str:
    return boson_name(name) if "head" in name else f"model.{boson_name(name)}"


NAMES = {"boson": boson_name, "early": early_name, "transformers": str, "native": str}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_layout(folder: Path, model: HiggsAudioForConditionalGeneration, layout: str) -> Path:
    """Files of a layout as its own program wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {NAMES[layout](name): tensor.clone() for name, tensor in model.state_dict().items()}
    if layout == "native":
        write_json(folder / "config.json", {**json.loads(model.config.to_json_string()), "model_type": "higgs_audio"})
    else:
        write_json(folder / "config.json", FLAT_CONFIG if layout == "transformers" else BOSON_CONFIG)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(folder: Path, count: int = 3) -> Path:
    """The single file of a folder as several with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def split(folder: Path) -> Path:
    """The tables of a folder in two parts each, as training with frozen rows leaves them."""
    weights = load_file(folder / "model.safetensors")
    for table, kind in (
        ("embed_tokens", "embedding"),
        ("audio_decoder_proj.text_lm_head", "linear"),
        ("audio_decoder_proj.audio_lm_head", "linear"),
    ):
        whole = weights.pop(f"{table}.weight")
        weights[f"{table}.{kind}_frozen.weight"] = whole[:100].clone()
        weights[f"{table}.{kind}_trainable.weight"] = whole[100:].clone()
    weights["audio_codebook_weights"] = torch.ones(K) / K
    save_file(weights, folder / "model.safetensors")
    return folder


def change(folder: Path, **weights: Tensor | None) -> Path:
    """Adds, replaces or (None) removes weights; "__" stands for "." in their names."""
    given = {name.replace("__", "."): tensor for name, tensor in weights.items()}
    old = load_file(folder / "model.safetensors")
    new = {name: tensor for name, tensor in {**old, **given}.items() if tensor is not None}
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def set_config(folder: Path, **fields) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, **fields})
    return folder


def assert_same_weights(loaded: torch.nn.Module, wanted: dict[str, Tensor]) -> None:
    given = loaded.state_dict()
    assert given.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(given[name], wanted[name])] == []


FORMS = {
    "boson": lambda folder, model: write_layout(folder, model, "boson"),
    "boson in shards": lambda folder, model: shard(write_layout(folder, model, "boson")),
    "boson, frozen tables": lambda folder, model: split(write_layout(folder, model, "boson")),
    "boson, frozen tables in shards": lambda folder, model: shard(split(write_layout(folder, model, "boson"))),
    "early": lambda folder, model: write_layout(folder, model, "early"),
    "transformers": lambda folder, model: write_layout(folder, model, "transformers"),
    "transformers in shards": lambda folder, model: shard(write_layout(folder, model, "transformers")),
    "native": lambda folder, model: write_layout(folder, model, "native"),
}


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
def test_the_trunk_alone_loads_from_every_layout_and_leaves_the_heads(form, model, tmp_path):
    assert_same_weights(HiggsAudioModel.from_pretrained(FORMS[form](tmp_path / "x", model)), model.model.state_dict())


def test_a_trunk_that_was_saved_alone_is_a_trunk_and_no_whole_model(model, tmp_path):
    model.model.save_pretrained(tmp_path / "trunk")
    assert_same_weights(HiggsAudioModel.from_pretrained(tmp_path / "trunk"), model.model.state_dict())
    with pytest.raises(CheckpointError, match=r"2 missing weights .*audio_lm_head\.weight, text_lm_head\.weight"):
        HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "trunk")


@torch.no_grad()
def test_logits_of_the_transformers_layout_are_those_of_transformers(model, tmp_path):
    torch.manual_seed(1)
    theirs = HiggsAudioV2ForConditionalGeneration(HiggsAudioV2Config(**FLAT_CONFIG), use_text_head=True).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    ids = torch.tensor([[305, 1, 2, 3, 4, 5, 6, 7, 302] + [301] * 5 + [9, 8]])
    codes = torch.randint(0, V + 2, (1, 5, K))
    given = {"input_ids": ids, "audio_input_ids": codes, "audio_input_ids_mask": torch.ones(1, 5, dtype=torch.bool)}
    torch.testing.assert_close(ours(**given).logits.flatten(2), theirs(**given).logits, atol=1e-5, rtol=0)


def test_a_model_without_a_text_head_loads_and_refuses_to_write_text(model, tmp_path):
    folder = change(write_layout(tmp_path / "x", model, "transformers"), text_lm_head__weight=None)
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder)
    heads = {name: tensor for name, tensor in model.state_dict().items() if name != "text_lm_head.weight"}
    assert_same_weights(loaded, heads)
    ids = torch.tensor([[305, 1, 2, 3, 302]])
    assert loaded(ids).text_logits is None
    sound = loaded.generate(ids, max_frames=3, eos_token_id=loaded.config.audio_eos_token_id, seed=0)
    assert sound[1][0].shape[0] == K
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


# The published checkpoint, key by key.


def published_names() -> list[str]:
    """The 397 names of the original, as its index lists them."""
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


def test_the_published_checkpoint_has_397_tensors_of_5771283456_numbers_key_by_key(published_shapes):
    names = published_names()
    assert len(names) == len(set(names)) == 397
    parts, unknown = layouts.place(names, layouts.BOSON)
    assert unknown == []
    assert parts.keys() == published_shapes.keys()
    assert {name: layouts.BOSON.theirs(name) for name in parts} == {name: found[0] for name, found in parts.items()}
    assert sum(torch.Size(shape).numel() for shape in published_shapes.values()) == 5_771_283_456
    assert published_shapes["model.embed_audio_tokens.embed_audio_tokens.weight"] == (8 * 1026, 3072)


def test_the_published_names_of_transformers_are_ours(published_shapes):
    with torch.device("meta"):
        theirs = HiggsAudioV2ForConditionalGeneration(HiggsAudioV2Config(codebook_size=1026), use_text_head=True)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()} == published_shapes
    parts, unknown = layouts.place(published_shapes, layouts.TRANSFORMERS)
    assert (unknown, parts) == ([], {name: [name] for name in published_shapes})


@pytest.mark.parametrize("layout", ["boson", "early"])
def test_the_understanding_variant_s_weights_have_their_places(layout):
    prefix = "model." if layout == "early" else ""
    names = [f"{prefix}audio_tower.conv1.bias", f"{prefix}audio_encoder_proj.linear.weight"]
    parts, unknown = layouts.place(names, layouts.LAYOUTS[layout])
    assert unknown == []
    assert list(parts) == ["model.audio_encoder_proj.linear.weight", "model.audio_tower.conv1.bias"] or set(parts) == {
        "model.audio_tower.conv1.bias",
        "model.audio_encoder_proj.linear.weight",
    }
    assert [layouts.LAYOUTS[layout].theirs(ours) for ours in parts] == [found[0] for found in parts.values()]


# Configs.


def test_the_default_config_is_that_of_the_published_checkpoint_in_both_layouts():
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
    flat = {"model_type": "higgs_audio_v2", "codebook_size": 1026, "dtype": "bfloat16"}  # the rest is its default
    for config in (nested, flat):
        read = HiggsAudioConfig(**layouts.read_fields(config, "x"))
        for name in HiggsAudioConfig.__annotations__:
            if name not in ("text_config", "audio_encoder_config"):  # the tower's block is kept where there is one
                assert getattr(read, name) == getattr(default, name), name
        for name in (*READ, "rope_parameters", "max_position_embeddings"):
            assert getattr(read.text_config, name) == getattr(default.text_config, name), name


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_config_comes_back_from_every_layout_as_it_was(layout, model):
    fields = {**model.config.to_dict(), "model_type": "higgs_audio", "codec": "org/tokenizer"}
    there = layouts.write_fields(fields, layouts.LAYOUTS[layout], "x")
    back = HiggsAudioConfig(**layouts.read_fields(json.loads(json.dumps(there)), "x"))
    for name in HiggsAudioConfig.__annotations__:
        if name not in ("text_config", "codec"):
            assert getattr(back, name) == getattr(model.config, name), name
    assert back.codec == "org/tokenizer"
    for name in (*READ, "rope_parameters", "max_position_embeddings", "hidden_act", "mlp_bias"):
        assert getattr(back.text_config, name) == getattr(model.config.text_config, name), name


def test_the_rotary_frequencies_of_both_published_configs_are_equal_to_the_bit():
    """The numbers differ by 8, which is a power of two: not one rounding differs."""
    theirs, ours = HiggsAudioV2Config(), HiggsAudioConfig().text_config
    assert theirs.rope_parameters["original_max_position_embeddings"] == 1024
    frequencies = [ROPE_INIT_FUNCTIONS["llama3"](config)[0] for config in (theirs, ours)]
    assert torch.equal(*frequencies)


@pytest.mark.parametrize(("size", "layout"), [(s, n) for s in (V, V + 2) for n in ("boson", "transformers")])
def test_a_codebook_may_be_counted_with_its_markers_or_without(size, layout, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, layout)
    set_config(folder, **{"codebook_size" if layout == "transformers" else "audio_codebook_size": size})
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(folder), model.state_dict())


def test_the_wrong_bos_of_transformers_is_put_right_and_others_are_kept():
    assert layouts.read_fields({"model_type": "higgs_audio_v2", "codebook_size": 1026}, "x")["bos_token_id"] == 128000
    assert layouts.read_fields({**FLAT_CONFIG, "bos_token_id": 305}, "x")["bos_token_id"] == 305


# What is refused.


def refuses(folder: Path, match: str, kind: type[HiggsAudioError] = CheckpointError, **options) -> None:
    with pytest.raises(kind, match=match):
        HiggsAudioForConditionalGeneration.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("fields", "said"),
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
        ({"audio_codebook_size": 17}, "codebooks of 17 with markers 16 and 17"),
        ({"audio_stream_eos_id": 18}, "codebooks of 16 with markers 16 and 18"),
        ({"text_config": None}, "no text_config"),
        ({"audio_adapter_type": "dual_fnn"}, "did you mean 'dual_ffn'"),
    ],
)
def test_a_config_that_cannot_be_built_says_which_field_it_is(fields, said, model, tmp_path):
    folder = set_config(write_layout(tmp_path / "x", model, "boson"), **fields)
    with pytest.raises(HiggsAudioError, match=re.escape(said)):
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
def test_a_field_of_another_type_is_an_error_of_the_checkpoint(layout, fields, model, tmp_path):
    folder = set_config(write_layout(tmp_path / "x", model, layout), **fields)
    refuses(folder, ".", HiggsAudioError)
    with suppress(HiggsAudioError):  # some fields say nothing wrong before a model is built from them
        HiggsAudioConfig.from_pretrained(folder)


@pytest.mark.parametrize("layout", NAMES)
def test_weights_that_do_not_fit_are_listed_by_the_names_in_the_files(layout, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, layout)
    missing, wrong = NAMES[layout]("model.layers.1.mlp.up_proj.weight"), NAMES[layout]("audio_lm_head.weight")
    extra = missing.replace("up_proj", "gate_proj").replace(".weight", ".bias")
    changes = {missing: None, wrong: torch.zeros(3, 32), extra: torch.zeros(3), "audio_encoder.w": torch.zeros(1)}
    change(folder, **{name.replace(".", "__"): tensor for name, tensor in changes.items()})
    refuses(folder, re.escape(f"1 missing weights for HiggsAudioForConditionalGeneration: {missing};"))
    refuses(folder, f"2 unexpected weights .*audio_encoder.w.*{re.escape(extra)}|2 unexpected weights .*{extra}")
    refuses(folder, re.escape(f"1 mismatched weights for HiggsAudioForConditionalGeneration: {wrong} [3, 32] instead"))


def test_a_long_list_of_weights_is_cut_and_counted(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "native")
    gone = [name for name in load_file(folder / "model.safetensors") if ".layers." in name]
    change(folder, **{name.replace(".", "__"): None for name in gone})
    refuses(folder, "28 missing weights .* and 8 more")


def truncated(folder):
    file = sorted(folder.glob("model-*"))[1]
    file.write_bytes(file.read_bytes()[:-10])


def overwritten(folder):
    sorted(folder.glob("model-*"))[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def indexed(content):
    return lambda folder: (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")


def claims_more(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["norm.bias"] = "model-00001-of-00003.safetensors"
    write_json(folder / "model.safetensors.index.json", index)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "model-00002-of-00003.safetensors is not a whole safetensors file"),
        (overwritten, "model-00001-of-00003.safetensors is not a whole safetensors file"),
        (lambda folder: (folder / "model-00003-of-00003.safetensors").unlink(), "lacks model-00003-of-00003"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "neither model.safetensors nor"),
        (indexed("{"), "cannot be read as JSON"),
        (indexed('{"weight_map": {"norm.weight": "../model.safetensors"}}'), "must hold"),
        (indexed('{"weight_map": []}'), "must hold"),
        (indexed('{"weight_map": {}}'), "must hold"),
        (indexed('{"weight_map": {"norm.weight": ""}}'), "must hold"),
        (indexed(json.dumps({"weight_map": {"norm.weight": "x" * 300}})), "must hold"),
        (indexed(json.dumps({"weight_map": {"norm.weight": "a\0b"}})), "must hold"),
        (claims_more, "names 1 weights that no file has: norm.bias"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
    ],
)
def test_damaged_files_are_refused(damage, said, model, tmp_path):
    folder = shard(write_layout(tmp_path / "x", model, "boson"))
    damage(folder)
    refuses(folder, re.escape(said))


def test_half_of_a_frozen_table_is_refused(model, tmp_path):
    folder = split(write_layout(tmp_path / "x", model, "boson"))
    change(folder, embed_tokens__embedding_trainable__weight=None)
    refuses(folder, "embed_tokens.embedding_frozen.weight do not make one embed_tokens.weight")


def test_parts_of_a_table_that_do_not_fit_together_are_refused(model, tmp_path):
    folder = split(write_layout(tmp_path / "x", model, "boson"))
    for part in (torch.zeros(220, 31), torch.zeros(220), torch.zeros(220, 32, 1)):
        change(folder, embed_tokens__embedding_trainable__weight=part)
        refuses(folder, "embed_tokens.embedding_frozen.weight F32.*do not fit together|do not fit together")


def test_parts_of_a_table_of_two_types_are_refused(model, tmp_path):
    """Joined, one of them would change its bits, and a conversion promises that none does."""
    folder = split(write_layout(tmp_path / "x", model, "boson"))
    change(folder, embed_tokens__embedding_trainable__weight=torch.zeros(220, 32, dtype=torch.bfloat16))
    refuses(folder, r"embedding_frozen.weight F32 \[100, 32\], .*embedding_trainable.weight BF16 \[220, 32\]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_of_integers_are_refused(dtype, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    change(folder, norm__weight=torch.ones(32, dtype=dtype))
    refuses(folder, "1 not floating-point weights for .*: norm.weight (I8|I64|BOOL)")


@pytest.mark.parametrize("name", [None, 3, "", "x" * 300, "a/b/c", "one/two" * 100, b"nano"])
def test_what_names_no_checkpoint_is_a_checkpoint_error(name):
    refuses(name, "no model ")


def test_options_have_names(model, tmp_path):
    with pytest.raises(OptionError, match="by keyword"):
        HiggsAudioForConditionalGeneration.from_pretrained(write_layout(tmp_path / "x", model, "boson"), model.config)


def test_a_model_in_memory_loads_in_the_way_of_transformers(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state)
    assert_same_weights(loaded, model.state_dict())


def test_a_checkpoint_may_lie_in_a_folder_of_a_folder(model, tmp_path):
    write_layout(tmp_path / "x" / "inner", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x", subfolder="inner")
    assert_same_weights(loaded, model.state_dict())
    refuses(tmp_path / "x", "without config.json")
    refuses(tmp_path / "x", "without config.json", subfolder="outer")


@pytest.mark.parametrize("content", ["", "[]", '"hot"', "{"])
def test_a_sampling_file_of_another_form_is_a_checkpoint_error(content, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    (folder / "generation_config.json").write_text(content)
    refuses(folder, "generation_config.json")


def test_a_config_of_one_layout_and_weights_of_another_are_refused(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    write_json(folder / "config.json", FLAT_CONFIG)
    refuses(folder, "model_type 'higgs_audio_v2', the weights are of boson; give the files of one layout")


def test_weights_of_no_layout_are_refused(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "native")
    save_file({"lm_head.weight": torch.zeros(2)}, folder / "model.safetensors")
    refuses(folder, "the weights are of no known layout")


# Options.


def test_dtypes_are_given_read_from_the_config_or_taken_from_the_weights(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "native")
    set_config(folder, dtype=None)
    load = HiggsAudioForConditionalGeneration.from_pretrained
    assert load(folder).dtype == load(folder, dtype="auto").dtype == torch.float32
    assert load(folder, torch_dtype="bfloat16").dtype == load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    set_config(folder, dtype="bfloat16")
    assert load(folder).dtype == load(folder, torch_dtype="auto").dtype == torch.bfloat16
    refuses(folder, "did you mean 'bfloat16'", OptionError, dtype="bflot16")
    refuses(folder, "dtype=torch.int8", OptionError, dtype=torch.int8)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_kind_of_attention_reaches_every_layer(attention, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
    assert {layer.self_attn.config._attn_implementation for layer in loaded.model.layers} == {attention}
    ids = torch.tensor([[305, 1, 2, 3]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_flex_attention_is_taken(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, attn_implementation="flex_attention")
    assert loaded.model.layers[0].self_attn.config._attn_implementation == "flex_attention"


def test_options_that_cannot_be_had_are_refused_by_name(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    refuses(folder, "did you mean 'flash_attention_2'", OptionError, attn_implementation="flash_attention2")
    refuses(folder, "did you mean 'revision'", OptionError, revison="main")
    if not torch.cuda.is_available():
        refuses(folder, "FlashAttention2", OptionError, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_places_the_model(place, model, tmp_path):
    pytest.importorskip("accelerate")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(
        write_layout(tmp_path / "x", model, "early"), device_map=place
    )
    assert_same_weights(loaded, model.state_dict())


def test_a_device_map_can_name_a_device_without_memory(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "early")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, device_map="meta")
    assert {weight.device.type for weight in loaded.parameters()} == {"meta"}


def test_weights_can_stay_on_disk(model, tmp_path):
    pytest.importorskip("accelerate")
    folder = write_layout(tmp_path / "x", model, "boson")
    place = {"model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    place |= {"model.embed_tokens": "cpu", "model.embed_audio_tokens": "cpu", "text_lm_head": "cpu"}
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(
        folder, device_map=place | {"audio_lm_head": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    ids = torch.tensor([[305, 1, 2, 3]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_fields_of_the_config_can_be_given(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, eos_token_id=7, audio_delay_token_id=307)
    assert (loaded.config.eos_token_id, loaded.config.audio_delay_token_id) == (7, 307)
    whole = HiggsAudioForConditionalGeneration.from_pretrained(folder, config=model.config)
    assert whole.config.audio_bos_token_id == 306


def test_the_checkpoint_s_sampling_comes_with_the_model(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    assert HiggsAudioForConditionalGeneration.from_pretrained(folder).generation_config is None
    write_json(folder / "generation_config.json", {"temperature": 0.25, "do_sample": True, "ras_win_len": 3})
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder)
    assert (loaded.generation_config.temperature, loaded.generation_config.ras_win_len) == (0.25, 3)
    loaded.save_pretrained(tmp_path / "saved")
    again = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert (again.generation_config.temperature, again.generation_config.ras_win_len) == (0.25, 3)
    given = GenerationConfig(temperature=0.5, do_sample=True)
    assert (
        HiggsAudioForConditionalGeneration.from_pretrained(folder, generation_config=given).generation_config is given
    )


# Saving.


@pytest.mark.parametrize("form", FORMS)
def test_what_was_loaded_from_any_layout_is_saved_in_ours(form, model, tmp_path):
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(FORMS[form](tmp_path / "x", model))
    loaded.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["audio_codebook_size"]) == ("higgs_audio", V)
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "saved"), model.state_dict())


def test_a_save_over_another_leaves_no_old_weights(model, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "tokenizer.json").write_text("{}")
    model.save_pretrained(tmp_path / "x", max_shard_size="20KB")
    assert len(list(tmp_path.glob("x/model-*.safetensors"))) > 2
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x"), model.state_dict())
    model.save_pretrained(tmp_path / "x")
    assert {file.name for file in (tmp_path / "x").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x"), model.state_dict())


def test_a_model_can_be_saved_over_the_files_that_it_was_loaded_from(model, tmp_path):
    """Loaded weights lie in the file until something changes them, so the file may not be written in place."""
    folder = write_layout(tmp_path / "x", model, "native")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder)
    loaded.save_pretrained(folder)
    assert_same_weights(loaded, model.state_dict())
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(folder), model.state_dict())


@pytest.mark.parametrize("before", [False, True])
def test_a_save_that_fails_leaves_the_folder_as_it_was(before, model, tmp_path, monkeypatch):
    if before:
        model.save_pretrained(tmp_path / "x")
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        make_model(eos_token_id=7).save_pretrained(tmp_path / "x")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files
    assert (tmp_path / "x").exists() == before


def test_a_model_is_not_saved_over_a_file(model, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        model.save_pretrained(tmp_path / "x")


# Memory.

PEAK = """
import re, sys, torch
from higgs_audio import HiggsAudioForConditionalGeneration
def peak():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
HiggsAudioForConditionalGeneration.from_pretrained(sys.argv[1])  # a tiny one, for what is imported on the way
before = peak()
model = HiggsAudioForConditionalGeneration.from_pretrained(sys.argv[2])
total = sum(float(weight.sum()) for weight in model.parameters())  # every page is touched
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux' /proc")
def test_loading_needs_hardly_more_memory_than_the_checkpoint(model, tmp_path):
    """A second copy of every weight would double it.

    getrusage would not see it: a child begins with its parent's peak.
    """
    write_layout(tmp_path / "tiny", model, "boson")
    text = {**BOSON_CONFIG["text_config"], "vocab_size": 50_000, "hidden_size": 256}
    config = {**BOSON_CONFIG, "text_config": text}
    with torch.device("meta"):
        names = HiggsAudioForConditionalGeneration(HiggsAudioConfig(**layouts.read_fields(config, "x"))).state_dict()
    (tmp_path / "large").mkdir()
    write_json(tmp_path / "large" / "config.json", config)
    weights = {boson_name(name): torch.ones(tensor.shape) for name, tensor in names.items()}
    save_file(weights, tmp_path / "large" / "model.safetensors")
    size = sum(tensor.nbytes for tensor in weights.values())
    run = [sys.executable, "-W", "ignore", "-c", PEAK, str(tmp_path / "tiny"), str(tmp_path / "large")]
    result = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ)
    assert size > 100e6
    assert int(result.stdout) < 1.2 * size
    shutil.rmtree(tmp_path / "large")


@pytest.mark.parametrize("dual", [None, [0, 1]])
def test_a_config_of_absurdly_many_layers_is_refused_before_any_is_built(dual, tiny_checkpoint, tmp_path):
    """10**12 layers without memory once took all that the machine had."""
    folder = tmp_path / "deep"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = 10**12
    config["audio_dual_ffn_layers"] = dual
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(HiggsAudioError, match="1000000000000"):
        HiggsAudioForConditionalGeneration.from_pretrained(folder)
