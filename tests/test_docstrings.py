"""Tests that the examples in the docstrings of public classes and functions run."""

import doctest
import inspect

import numpy as np
import pytest
import torch

import higgs_audio
from higgs_audio import auto, checkpoint
from higgs_audio.audio import fetch
from higgs_audio.checkpoint import layouts
from higgs_audio.model.model import HiggsAudioForConditionalGeneration, HiggsAudioModel
from higgs_audio.prompt import config as processor_config
from higgs_audio.prompt.processor import HiggsAudioProcessor

DOCUMENTED = {
    "HiggsAudioConfig": higgs_audio.HiggsAudioConfig,
    "HiggsAudioProcessor": HiggsAudioProcessor,
    "HiggsAudioProcessor.from_pretrained": HiggsAudioProcessor.from_pretrained,
    "HiggsAudioProcessor.apply_chat_template": HiggsAudioProcessor.apply_chat_template,
    "HiggsAudioProcessor.__call__": HiggsAudioProcessor.__call__,
    "HiggsAudioProcessor.decode": HiggsAudioProcessor.decode,
    "HiggsAudioModel": HiggsAudioModel,
    "HiggsAudioModel.forward": HiggsAudioModel.forward,
    "HiggsAudioForConditionalGeneration": HiggsAudioForConditionalGeneration,
    "HiggsAudioForConditionalGeneration.forward": HiggsAudioForConditionalGeneration.forward,
    "HiggsAudioForConditionalGeneration.generate": HiggsAudioForConditionalGeneration.generate,
    "AutoProcessor": auto.AutoProcessor,
    "AutoTokenizer": auto.AutoTokenizer,
    "ProcessorConfig": processor_config.ProcessorConfig,
    "is_public": fetch.is_public,
    "Checkpoint": checkpoint.Checkpoint,
    "open_checkpoint": checkpoint.open_checkpoint,
    "Layout.stored_name": layouts.Layout.stored_name,
}
# Methods whose docstrings must have all sections.
WHOLE = [
    "HiggsAudioProcessor.__call__",
    "HiggsAudioProcessor.decode",
    "HiggsAudioModel.forward",
    "HiggsAudioForConditionalGeneration.forward",
    "HiggsAudioForConditionalGeneration.generate",
]
NAMES = {"np": np, "torch": torch, "higgs_audio": higgs_audio, "is_public": fetch.is_public} | {
    name: getattr(higgs_audio, name) for name in higgs_audio.__all__
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documentation = inspect.getdoc(DOCUMENTED[name])
    names = {
        **NAMES,
        **vars(checkpoint),
        "ProcessorConfig": processor_config.ProcessorConfig,
        "LAYOUTS": layouts.LAYOUTS,
    }
    test = doctest.DocTestParser().get_doctest(documentation, names, name, None, None)
    assert test.examples
    printed = []
    assert doctest.DocTestRunner().run(test, out=printed.append).failed == 0, "".join(printed)
    assert "SKIP" not in documentation


@pytest.mark.parametrize("name", WHOLE)
def test_docstrings_of_the_main_methods_have_all_sections(name):
    documentation = inspect.getdoc(DOCUMENTED[name])
    for part in ("Args:", "Returns:", "Raises:", "Source:", "[B, T"):
        assert part in documentation or (part == "[B, T" and name.endswith("decode")), part
