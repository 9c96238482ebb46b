"""Tests of the options of `from_pretrained`, of saving a loaded model, and of the memory that loading takes."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from full_disk import file_size_limit
from hooks import TorchCalls
from safetensors.torch import load_file, save_file
from stored_layouts import (
    BOSON_CONFIG,
    FORMS,
    V,
    assert_same_weights,
    boson_name,
    make_model,
    set_config,
    write_json,
    write_layout,
)
from transformers import GenerationConfig

from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.checkpoint import layouts
from higgs_audio.errors import CheckpointError, HiggsAudioError, OptionError


def assert_rejected(folder: Path, match: str, kind: type[HiggsAudioError] = CheckpointError, **options) -> None:
    """Asserts that loading a folder raises an error of this kind."""
    with pytest.raises(kind, match=match):
        HiggsAudioForConditionalGeneration.from_pretrained(folder, **options)


def test_options_are_keyword_only(model, tmp_path):
    with pytest.raises(OptionError, match="by keyword"):
        HiggsAudioForConditionalGeneration.from_pretrained(write_layout(tmp_path / "x", model, "boson"), model.config)


def test_a_state_dict_loads_as_in_transformers(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state)
    assert_same_weights(loaded, model.state_dict())


def test_a_checkpoint_loads_from_a_subfolder(model, tmp_path):
    write_layout(tmp_path / "x" / "inner", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x", subfolder="inner")
    assert_same_weights(loaded, model.state_dict())
    assert_rejected(tmp_path / "x", "without config.json")
    assert_rejected(tmp_path / "x", "without config.json", subfolder="outer")


# Options.


def test_the_dtype_is_the_given_one_or_that_of_the_config_or_of_the_weights(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "native")
    set_config(folder, dtype=None)
    load = HiggsAudioForConditionalGeneration.from_pretrained
    assert load(folder).dtype == load(folder, dtype="auto").dtype == torch.float32
    assert load(folder, torch_dtype="bfloat16").dtype == load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    set_config(folder, dtype="bfloat16")
    assert load(folder).dtype == load(folder, torch_dtype="auto").dtype == torch.bfloat16
    assert_rejected(folder, "did you mean 'bfloat16'", OptionError, dtype="bflot16")
    assert_rejected(folder, "dtype=torch.int8", OptionError, dtype=torch.int8)


@pytest.mark.parametrize(("attention", "kernel"), [("eager", "softmax"), ("sdpa", "scaled_dot_product_attention")])
def test_the_attention_implementation_is_set_in_every_layer(attention, kernel, model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
    ids, calls = torch.tensor([[305, 1, 2, 3]]), Counter()
    with TorchCalls(lambda function, *_: calls.update([function.__name__])):
        logits = loaded(ids).logits
    kernels = {name: calls[name] for name in ("softmax", "scaled_dot_product_attention") if calls[name]}
    assert kernels == {kernel: len(loaded.model.layers)}
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=0)


def test_flex_attention_is_accepted(model, tmp_path):
    """It is not run, because transformers compiles it; there is no public name for what it will run."""
    folder = write_layout(tmp_path / "x", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, attn_implementation="flex_attention")
    assert loaded.model.layers[0].self_attn.config._attn_implementation == "flex_attention"


def test_unavailable_options_are_rejected_by_name(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    assert_rejected(folder, "did you mean 'flash_attention_2'", OptionError, attn_implementation="flash_attention2")
    assert_rejected(folder, "did you mean 'revision'", OptionError, revison="main")
    if not torch.cuda.is_available():
        assert_rejected(folder, "FlashAttention2", OptionError, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_places_the_model(place, model, tmp_path):
    pytest.importorskip("accelerate")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(
        write_layout(tmp_path / "x", model, "early"), device_map=place
    )
    assert_same_weights(loaded, model.state_dict())


def test_a_device_map_may_be_the_meta_device(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "early")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, device_map="meta")
    assert {weight.device.type for weight in loaded.parameters()} == {"meta"}


def test_weights_can_be_offloaded_to_disk(model, tmp_path):
    pytest.importorskip("accelerate")
    folder = write_layout(tmp_path / "x", model, "boson")
    place = {"model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    place |= {"model.embed_tokens": "cpu", "model.embed_audio_tokens": "cpu", "text_lm_head": "cpu"}
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(
        folder, device_map=place | {"audio_lm_head": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    ids = torch.tensor([[305, 1, 2, 3]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_config_fields_can_be_overridden(model, tmp_path):
    folder = write_layout(tmp_path / "x", model, "boson")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder, eos_token_id=7, audio_delay_token_id=307)
    assert (loaded.config.eos_token_id, loaded.config.audio_delay_token_id) == (7, 307)
    whole = HiggsAudioForConditionalGeneration.from_pretrained(folder, config=model.config)
    assert whole.config.audio_bos_token_id == 306


def test_the_generation_config_is_loaded_and_saved_with_the_model(model, tmp_path):
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
def test_a_model_from_any_layout_is_saved_in_the_native_layout(form, model, tmp_path):
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(FORMS[form](tmp_path / "x", model))
    loaded.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["audio_codebook_size"]) == ("higgs_audio", V)
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "saved"), model.state_dict())


def test_saving_into_a_used_folder_removes_its_old_weights(model, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "tokenizer.json").write_text("{}")
    model.save_pretrained(tmp_path / "x", max_shard_size="20KB")
    assert len(list(tmp_path.glob("x/model-*.safetensors"))) > 2
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x"), model.state_dict())
    model.save_pretrained(tmp_path / "x")
    assert {file.name for file in (tmp_path / "x").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "x"), model.state_dict())


def test_a_model_can_be_saved_over_the_files_it_was_loaded_from(model, tmp_path):
    """Loaded weights are memory-mapped until they are modified, so the file must not be written in place."""
    folder = write_layout(tmp_path / "x", model, "native")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(folder)
    loaded.save_pretrained(folder)
    assert_same_weights(loaded, model.state_dict())
    assert_same_weights(HiggsAudioForConditionalGeneration.from_pretrained(folder), model.state_dict())


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_save_leaves_the_folder_unchanged(before, model, tmp_path):
    if before:
        model.save_pretrained(tmp_path / "x")
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = make_model(eos_token_id=7)
    with file_size_limit(20_000), pytest.raises(CheckpointError, match="File too large"):
        other.save_pretrained(tmp_path / "x")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files
    assert (tmp_path / "x").exists() == before


def test_saving_over_a_file_is_rejected(model, tmp_path):
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
HiggsAudioForConditionalGeneration.from_pretrained(sys.argv[1])  # a tiny model, so that all modules are imported
before = peak()
model = HiggsAudioForConditionalGeneration.from_pretrained(sys.argv[2])
total = sum(float(weight.sum()) for weight in model.parameters())  # every page is touched
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc, which only Linux has")
def test_loading_needs_little_more_memory_than_the_checkpoint(model, tmp_path):
    """A second copy of every weight would double the peak. getrusage cannot measure it: the peak of a child process
    starts at the peak of its parent."""
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
