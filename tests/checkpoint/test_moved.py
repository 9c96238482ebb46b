"""Tests of names of earlier versions: their pickles load, documented imports work, and other names raise an error."""

import pickle
from importlib import import_module

import numpy as np
import pytest
import torch

from higgs_audio import (
    HiggsAudioForConditionalGeneration,
    Speech,
    Waveform,
    generation,
)
from higgs_audio.data import importers, shards
from higgs_audio.data.clips import Clip
from higgs_audio.errors import CheckpointError
from higgs_audio.generation import GenerateOutput, SamplingOptions
from higgs_audio.moved import MOVED

LISTED = [(module, name) for module, names in MOVED.items() for name in names]


def old_pickle(value: object, module: str, name: str) -> bytes:
    """Returns a pickle of `value` as written by a version in which its class had another module and name."""
    # Protocol 0 writes a class as its module and its name, each on its own line.
    text = pickle.dumps(value, protocol=0)
    today = f"c{type(value).__module__}\n{type(value).__qualname__}\n".encode()
    assert today in text
    return text.replace(today, f"chiggs_audio.{module}\n{name}\n".encode())


@pytest.mark.parametrize(("module", "name"), LISTED)
def test_every_listed_name_exists(module, name):
    target, _, today = MOVED[module][name].rpartition(".")
    value = getattr(import_module(f"higgs_audio.{target}"), today)
    assert getattr(import_module(f"higgs_audio.{module}"), name) is value
    assert value.__module__ == f"higgs_audio.{target}"


@pytest.mark.parametrize(
    ("value", "module", "name"),
    [
        (Speech(Waveform(np.zeros(960, np.float32), 24_000), np.zeros((8, 1), np.int64), "stop"), "speaking", "Speech"),
        (SamplingOptions(temperature=0.5), "sampling", "SamplingOptions"),
        (GenerateOutput(torch.zeros(1, 2), ([],), ("stop",)), "generate", "GenerateOutput"),
        (Clip("one", "one.wav", "Hello.", "ava", 1.0), "train.clips", "Clip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pickle_of_an_earlier_version_loads(value, module, name):
    loaded = pickle.loads(old_pickle(value, module, name))
    assert type(loaded) is type(value)
    assert repr(loaded) == repr(value)


def test_a_pickled_model_of_an_earlier_version_loads(tiny_checkpoint):
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    data = pickle.dumps(model, protocol=0)
    for name in ("Attention", "AudioEmbeddings", "DualFFNLayer", "FeedForward", "RMSNorm", "RotaryEmbedding"):
        today = f"chiggs_audio.model.layers\n{name}\n".encode()
        assert today in data
        data = data.replace(today, f"chiggs_audio.layers\n{name}\n".encode())
    for name in ("HiggsAudioForConditionalGeneration", "HiggsAudioModel"):
        data = data.replace(f"chiggs_audio.model.model\n{name}\n".encode(), f"chiggs_audio.model\n{name}\n".encode())
    loaded = pickle.loads(data)
    assert isinstance(loaded, HiggsAudioForConditionalGeneration)
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def test_imports_from_the_documentation_of_an_earlier_version_work():
    shown = {
        "generate.stream": generation.stream,
        "train.importers.from_huggingface": importers.from_huggingface,
        "train.importers.from_lhotse": importers.from_lhotse,
        "train.shards.read_samples": shards.read_encoded_clips,
    }
    for name, value in shown.items():
        module, _, attribute = f"higgs_audio.{name}".rpartition(".")
        assert getattr(import_module(module), attribute) is value


def test_a_pickled_processor_of_an_earlier_version_is_rejected():
    with pytest.raises(CheckpointError, match="from folders that were written by save_pretrained"):
        pickle.loads(b"chiggs_audio.processor\nHiggsAudioProcessor\n.")


def test_other_names_of_a_moved_module_are_rejected_and_other_modules_do_not_exist():
    with pytest.raises(CheckpointError, match=r"higgs_audio\.generate\.GenerateInput belongs to an earlier version"):
        import_module("higgs_audio.generate").GenerateInput  # noqa: B018
    assert not hasattr(import_module("higgs_audio.generate"), "__wrapped__")
    with pytest.raises(ModuleNotFoundError, match=r"higgs_audio\.train\.nothing"):
        import_module("higgs_audio.train.nothing")
