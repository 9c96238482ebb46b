"""Tests of `higgs-audio convert`: bit-exact round trips through all layouts, and destinations that are complete or
absent.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
import torch
from oracle import make_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import HiggsAudioV2ForConditionalGeneration

from higgs_audio import HiggsAudio, HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.checkpoint.layouts import LAYOUTS
from higgs_audio.checkpoint.weights import Weight, open_weights, save_weights
from higgs_audio.convert import convert
from higgs_audio.errors import CheckpointError, OptionError
from higgs_audio.prompt.processor import HiggsAudioProcessor


@pytest.fixture(scope="module")
def source(tiny_checkpoint, tmp_path_factory) -> Path:
    """Returns a checkpoint with random weights in bfloat16 and an audio tokenizer of the published architecture."""
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2 + (weight.dim() == 1))
    model.save_pretrained(folder)
    make_tokenizer("dac").save_pretrained(folder / "codec")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "voices.json"):
        (folder / name).write_bytes((tiny_checkpoint / name).read_bytes())
    sampling = {"do_sample": True, "temperature": 0.7, "ras_win_len": 7, "ras_win_max_num_repeat": 2}
    (folder / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    """Returns name in the files -> tensor."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def bits(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Returns name in our module tree -> dtype and bytes."""
    return {
        name: (weight.get_dtype(), weight[...].contiguous().view(torch.uint8).numpy().tobytes())
        for name, weight in open_weights(folder).items()
    }


@pytest.mark.parametrize(("first", "second"), list(permutations(LAYOUTS, 2)))
def test_a_round_trip_through_any_two_layouts_keeps_every_bit(first, second, source, tmp_path):
    there = convert(source, tmp_path / "a", first)
    back = convert(convert(there, tmp_path / "b", second), tmp_path / "c", first)
    theirs, ours = stored(there), stored(back)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) and theirs[name].dtype == torch.bfloat16 for name in theirs)
    assert bits(source) == bits(tmp_path / "b") == bits(back)
    ignored = (str(tmp_path / "a"), str(tmp_path / "c"))
    for file in sorted(path.relative_to(there) for path in there.glob("*.json")):  # codec/ is tested below
        contents = [(folder / file).read_text(encoding="utf-8") for folder in (there, back)]
        contents = [text.replace(path, "") for text, path in zip(contents, ignored, strict=True)]
        if file.name != "generation_config.json":
            assert json.loads(contents[0]) == json.loads(contents[1]), file
    assert {path.name for path in there.iterdir()} == {path.name for path in back.iterdir()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_audio_tokenizer_is_converted_with_the_checkpoint(layout, source, tmp_path):
    convert(source, tmp_path / "a", layout)
    convert(tmp_path / "a", tmp_path / "b", "native")
    theirs, ours = (
        load_file(tmp_path / "b" / "codec" / "model.safetensors"),
        load_file(source / "codec" / "model.safetensors"),
    )
    assert theirs.keys() == ours.keys()
    worst = max(float((theirs[name].float() - ours[name].float()).abs().max()) for name in ours if ours[name].numel())
    assert worst < 1e-6  # only weight normalization, as the original stores it, rounds
    has_pickle = (tmp_path / "a" / "codec" / "model.pth").exists()
    assert has_pickle == (layout == "boson")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_generates_the_same_speech(layout, tiny_checkpoint, tmp_path):
    """Text tokenizer, voices, sampling options and audio tokenizer are converted with the weights."""
    speech = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu").generate("Hi there.", "joe", seed=1)
    convert(tiny_checkpoint, tmp_path / layout, layout)
    again = HiggsAudio.from_pretrained(tmp_path / layout, device="cpu").generate("Hi there.", "joe", seed=1)
    assert (speech.codes == again.codes).all()
    assert (speech.waveform.samples == again.waveform.samples).all()


@torch.no_grad()
def test_transformers_computes_the_same_logits_from_a_converted_checkpoint(source, tmp_path):
    ours = HiggsAudioForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    folder = convert(source, tmp_path / "x", "transformers")
    theirs, report = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, use_text_head=True, output_loading_info=True
    )
    assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    config = ours.config
    ids = [*range(20, 30), config.audio_out_bos_token_id, *[config.audio_out_token_idx] * 6, 21, 22]
    given = {
        "input_ids": torch.tensor([ids]),
        "audio_input_ids": torch.randint(0, config.codebook_rows, (1, 6, config.audio_num_codebooks)),
        "audio_input_ids_mask": torch.ones(1, 6, dtype=torch.bool),
    }
    wanted, result = ours(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True)
    torch.testing.assert_close(result.logits, wanted.logits.flatten(2), atol=1e-5, rtol=0)
    text = theirs.text_lm_head(result.hidden_states[-1])
    torch.testing.assert_close(text, wanted.text_logits, atol=1e-5, rtol=0)
    assert theirs.generation_config.eos_token_id == config.eos_token_id
    assert (theirs.generation_config.temperature, theirs.generation_config.ras_win_len) == (0.7, 7)


def test_a_checkpoint_saved_by_transformers_loads_unchanged(source, tmp_path):
    folder = convert(source, tmp_path / "x", "transformers")
    theirs = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, use_text_head=True)
    theirs.save_pretrained(tmp_path / "saved")
    loaded = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert bits(tmp_path / "saved") == bits(source)
    config = HiggsAudioConfig.from_pretrained(source)
    for name in HiggsAudioConfig.__annotations__:
        if name not in ("text_config", "codec"):
            assert getattr(loaded.config, name) == getattr(config, name), name


def test_large_models_in_the_original_layout_are_written_in_shards(source, tmp_path):
    folder = convert(source, tmp_path / "x", "boson", max_shard_bytes=20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    held = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            held |= dict.fromkeys(tensors.keys(), file)
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(len(content) for _, content in bits(source).values())
    assert bits(folder) == bits(source)
    single = convert(source, tmp_path / "y", "native", max_shard_bytes=20_000)
    assert (single / "model.safetensors").is_file()


def test_frozen_tables_are_joined(source, tmp_path):
    folder = convert(source, tmp_path / "x", "boson")
    weights = load_file(folder / "model.safetensors")
    table = weights.pop("embed_tokens.weight")
    weights["embed_tokens.embedding_frozen.weight"] = table[:7].clone()
    weights["embed_tokens.embedding_trainable.weight"] = table[7:].clone()
    save_file(weights, folder / "model.safetensors")
    assert bits(convert(folder, tmp_path / "y", "native")) == bits(source)


def test_a_copied_file_has_the_same_tensors_of_every_dtype(tmp_path):
    """Also with tensors of odd sizes, empty tensors and a scalar."""
    kinds = (torch.bfloat16, torch.float32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float16)
    tensors = {f"{kind}.{n}": torch.arange(n).float().to(kind).clone() for kind in kinds for n in (0, 1, 3, 8)}
    tensors["a.number"] = torch.tensor(3.5)
    save_file(tensors, tmp_path / "theirs.safetensors")
    with safe_open(tmp_path / "theirs.safetensors", framework="pt") as file:
        save_weights({name: Weight((file.get_slice(name),)) for name in tensors}, tmp_path / "ours.safetensors")
    again = load_file(tmp_path / "ours.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].shape == tensor.shape
        assert torch.equal(again[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_a_converted_checkpoint_finds_its_audio_tokenizer_after_a_move(tiny_checkpoint, tmp_path):
    """processor_config.json contains its absolute path, because transformers does not support relative paths."""
    convert(tiny_checkpoint, tmp_path / "x", "transformers")
    named = json.loads((tmp_path / "x" / "processor_config.json").read_text())["audio_tokenizer"]
    assert named["audio_tokenizer_name_or_path"] == str(tmp_path / "x" / "codec")
    (tmp_path / "x").rename(tmp_path / "y")
    processor = HiggsAudioProcessor.from_pretrained(tmp_path / "y")
    assert processor.audio_tokenizer.name_or_path == str(tmp_path / "y" / "codec")


@pytest.mark.parametrize("name", [".", "empty", "new/er"])
def test_the_destination_may_be_empty_or_the_working_directory_or_nested(name, source, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert(source, name if name == "." else tmp_path / name, "boson") == Path(
        name if name == "." else tmp_path / name
    )
    folder = tmp_path / ("here" if name == "." else name)
    assert bits(folder) == bits(source)
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def test_only_known_files_are_copied(source, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(source, mixed)
    for name in ("README.md", "LICENSE", "diary.md", "tokenizer.backup.json", "LICENSE-of-something-else"):
        (mixed / name).write_text(name)
    (mixed / "chat_template.jinja").mkdir()  # not a file
    names = {path.name for path in convert(mixed, tmp_path / "x", "native").iterdir()}
    assert names == {path.name for path in source.iterdir()} | {"README.md", "LICENSE"}


# Errors.


def test_a_destination_that_is_not_empty_is_rejected(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not empty"):
        convert(source, tmp_path / "mine", "boson")
    with pytest.raises(CheckpointError, match="not empty"):
        convert(source, tmp_path / "mine" / "notes.txt", "boson")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_unknown_layout_or_source_is_rejected(source, tmp_path):
    with pytest.raises(OptionError, match="did you mean 'transformers'"):
        convert(source, tmp_path / "x", "transformer")
    with pytest.raises(CheckpointError, match="no model"):
        convert(tmp_path / "nowhere", tmp_path / "x", "boson")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_leaves_no_destination(source, tmp_path):
    broken = convert(source, tmp_path / "broken", "boson")
    weights = load_file(broken / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing weights .*norm\.weight"):
        convert(broken, tmp_path / "x", "native")
    (broken / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        convert(broken, tmp_path / "x", "native")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_model_that_the_layout_cannot_express_is_rejected(source, tmp_path):
    model = HiggsAudioForConditionalGeneration(HiggsAudioConfig.from_pretrained(source))
    config = HiggsAudioConfig.from_pretrained(source, audio_adapter_type="stack", audio_dual_ffn_layers=[])
    stack = HiggsAudioForConditionalGeneration(config)
    assert len(stack.state_dict()) < len(model.state_dict())
    stack.save_pretrained(tmp_path / "stack")
    with pytest.raises(CheckpointError, match="0 of 2 layers have a DualFFN"):
        convert(tmp_path / "stack", tmp_path / "x", "transformers")
    assert bits(convert(tmp_path / "stack", tmp_path / "y", "boson")) == bits(tmp_path / "stack")


KILLED = """
import sys, time
from higgs_audio.checkpoint import weights
from higgs_audio.convert import convert
save = weights.save_file
def slowly(*arguments, **options):
    save(*arguments, **options)
    print("written", flush=True)
    time.sleep(60)
weights.save_file = slowly
convert(*sys.argv[1:])
"""


def test_a_killed_conversion_leaves_no_folder_and_can_be_repeated(source, tmp_path):
    run = [sys.executable, "-W", "ignore", "-c", KILLED, str(source), str(tmp_path / "x"), "boson"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert not (tmp_path / "x").exists()
    assert list(tmp_path.iterdir())  # files of the killed run
    began = time.perf_counter()
    assert bits(convert(source, tmp_path / "x", "boson")) == bits(source)
    assert time.perf_counter() - began < 50
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_command_prints_the_folder_or_an_error(source, tmp_path, capsys):
    from higgs_audio.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    printed = capsys.readouterr().out
    assert [name for name in LAYOUTS if name not in printed] == []
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(tmp_path / "x"), "--to", "boson"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{tmp_path / 'x'}\n")
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(tmp_path / "x"), "--to", "boson"])
    assert ended.value.code == 2
    assert "not empty" in capsys.readouterr().err
