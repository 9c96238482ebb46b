"""Tests of `Checkpoint`: every part of a model is loaded from one object, which opens each file once."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from higgs_audio import NANO
from higgs_audio.checkpoint import Checkpoint, as_checkpoint, open_checkpoint
from higgs_audio.checkpoint.tokenizer import read_tokenizer
from higgs_audio.errors import CheckpointError

# For each expression, prints how often evaluating it opens each file below a folder. Two events count as opening: an
# `open` event of Python's audit hooks (every `open`, `os.open` and `Path.read_text` raises one), and a call of
# `safetensors.safe_open`, which opens its file in Rust, where the hooks do not see it.
COUNT = """
import collections, json, os, sys
folder, counts = sys.argv[1], collections.Counter()

def count(path):
    path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    if path.startswith(folder + os.sep) and os.path.isfile(path):
        counts[os.path.relpath(path, folder).replace(os.sep, "/")] += 1

def counted_open(path, *args, **options):
    count(path)
    return safe_open(path, *args, **options)

import safetensors
safe_open, safetensors.safe_open = safetensors.safe_open, counted_open  # before anything else imports the name
from higgs_audio import AutoProcessor, AutoTokenizer
from higgs_audio import HiggsAudioForConditionalGeneration, HiggsAudioProcessor, HiggsAudioTokenizer
from higgs_audio.cli.common import load_model
sys.addaudithook(lambda event, args: count(args[0]) if event == "open" else None)
for expression in json.loads(sys.argv[2]):
    counts.clear()
    eval(expression)
    print(json.dumps(counts), flush=True)
"""
TEXT = {"tokenizer.json", "tokenizer_config.json", "processor_config.json"}
CODEC = {"codec/config.json", "codec/model.safetensors"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
ONCE = {
    "load_model(folder, 'cpu')": MODEL | TEXT | CODEC | {"voices.json"},  # as `higgs-audio speak` calls it
    "HiggsAudioForConditionalGeneration.from_pretrained(folder)": MODEL,
    "HiggsAudioProcessor.from_pretrained(folder)": TEXT | CODEC | {"voices.json"},
    # config.json determines the class of the processor
    "AutoProcessor.from_pretrained(folder)": TEXT | CODEC | {"config.json", "voices.json"},
    "AutoTokenizer.from_pretrained(folder)": {"config.json", "tokenizer.json", "tokenizer_config.json"},
    "HiggsAudioTokenizer.from_pretrained(folder)": CODEC,
    "HiggsAudioTokenizer.from_pretrained(folder + '/codec')": CODEC,
}
TWICE = "[HiggsAudioTokenizer.from_pretrained(folder) for _ in range(2)]"


@pytest.fixture(scope="module")
def opened():
    """Returns expression -> file -> how often evaluating the expression opens it; all in one process, which takes
    seconds to start."""
    expressions = [*ONCE, TWICE]
    run = [sys.executable, "-c", COUNT, str(NANO), json.dumps(expressions)]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(zip(expressions, map(json.loads, result.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("expression", ONCE)
def test_loading_opens_each_file_once(expression, opened):
    """Earlier, config.json was opened three times, codec/config.json and tokenizer_config.json twice."""
    assert opened[expression] == dict.fromkeys(ONCE[expression], 1)


def test_a_file_that_is_opened_twice_would_be_counted(opened):
    assert opened[TWICE] == dict.fromkeys(CODEC, 2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "higgs_audio", "text_config": {"vocab_size": 7}}')
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_text('{"model_type": "higgs_audio_tokenizer"}')
    return tmp_path


def test_contents_are_those_of_the_first_read_and_every_reader_has_a_copy(folder):
    checkpoint = open_checkpoint(folder)
    first = checkpoint.config
    (folder / "config.json").write_text("{}")
    first["text_config"]["vocab_size"] = 8
    assert checkpoint.config == {"model_type": "higgs_audio", "text_config": {"vocab_size": 7}}
    assert open_checkpoint(folder).config == {}


def test_a_checkpoint_is_a_frozen_value_and_a_path(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint == Checkpoint(folder)
    assert hash(checkpoint) == hash(Checkpoint(folder))
    assert (str(checkpoint), os.fspath(checkpoint)) == (str(folder), str(folder))
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.folder = folder / "codec"


def test_an_open_checkpoint_is_not_opened_again(folder):
    checkpoint = open_checkpoint(folder)
    assert open_checkpoint(checkpoint) is as_checkpoint(checkpoint) is checkpoint
    with pytest.raises(CheckpointError, match=r"without tokenizer\.json"):
        open_checkpoint(checkpoint, required_file="tokenizer.json")


def test_the_folder_of_the_audio_tokenizer_is_a_checkpoint_of_its_own(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.codec is checkpoint.inside("codec") is checkpoint.codec
    assert checkpoint.codec == open_checkpoint(folder, subfolder="codec")
    assert checkpoint.codec.config == {"model_type": "higgs_audio_tokenizer"}
    assert checkpoint.codec.codec is None
    assert checkpoint.inside(None) is checkpoint.inside("") is checkpoint


def test_a_subfolder_that_the_embedded_checkpoint_lacks_is_named():
    with pytest.raises(CheckpointError, match=r"nano/voices' is a folder without config\.json"):
        open_checkpoint("nano", subfolder="voices")
    assert open_checkpoint("nano", subfolder="codec").folder == NANO / "codec"


def test_a_file_that_is_absent_is_an_error_or_empty(folder):
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.has("voices.json")
    assert checkpoint.voices == checkpoint.read_if_present("voices.json") == {}
    with pytest.raises(CheckpointError, match=r"voices\.json cannot be read as JSON"):
        checkpoint.read("voices.json")


# The text tokenizer.


def state(tokenizer, folder):
    """Returns the parts of a tokenizer, and the files that it saves."""
    tokenizer.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return tokenizer.init_kwargs, tokenizer.special_tokens_map, tokenizer.backend_tokenizer.to_str(), files


TEMPLATE = {"chat_template.jinja": "{{ messages }}"}
TOKENS = {"special_tokens_map.json": json.dumps({"eos_token": {"content": "<|eom_id|>"}, "pad_token": "<|eot_id|>"})}
FIELDS = {
    "as it is": {},
    "a token by its fields": {"eos_token": {"content": "<|eom_id|>", "__type": "AddedToken"}},
    "no pad token": {"pad_token": None},
    "a token of its own": {"voice_token": "<|AUDIO|>"},
    "a class": {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"},
}


@pytest.mark.parametrize("files", [{}, TEMPLATE, TOKENS], ids=["plain", "template", "tokens"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_the_tokenizer_is_that_of_transformers(files, fields, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copyfile(NANO / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((NANO / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name, content in {**files, "tokenizer_config.json": json.dumps({**config, **fields})}.items():
        (folder / name).write_text(content, encoding="utf-8")
    ours, theirs = read_tokenizer(Checkpoint(folder)), PreTrainedTokenizerFast.from_pretrained(folder)
    assert state(ours, tmp_path / "ours") == state(theirs, tmp_path / "theirs")
    again = [read_tokenizer(Checkpoint(tmp_path / name)) for name in ("ours", "theirs")]
    assert state(again[0], tmp_path / "x")[1:] == state(again[1], tmp_path / "y")[1:]
