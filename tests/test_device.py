"""Devices as people name them: what is there, and a sentence for what is not."""

import doctest

import pytest
import torch

from higgs_audio import HiggsAudio, HiggsAudioTokenizer, device
from higgs_audio.device import read_device
from higgs_audio.errors import OptionError

BEST = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("given", "read"),
    [("cpu", "cpu"), (torch.device("cpu"), "cpu"), ("meta", "meta"), (None, BEST), ("auto", BEST)],
)
def test_a_device_is_a_name_or_a_device_or_nothing(given, read):
    assert read_device(given) == torch.device(read)


@pytest.mark.parametrize("given", ["gpu9", "", "cuda:99", "fpga", "cpu,cuda", 3.5, {"": "cpu"}, ["cpu"], True])
def test_what_is_no_device_or_not_there_is_an_option_error(given):
    with pytest.raises(OptionError, match=r"codec_device=.* cannot be used here"):
        read_device(given, "codec_device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_loaded(monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(
        "higgs_audio.checkpoint.find.resolve", lambda *_, **__: pytest.fail("a checkpoint was looked for")
    )
    with pytest.raises(OptionError, match="device='cuda' cannot be used here"):
        HiggsAudio.from_pretrained(tiny_checkpoint, device="cuda")
    with pytest.raises(OptionError, match="device_map='cuda' cannot be used here"):
        HiggsAudioTokenizer.from_pretrained(tiny_checkpoint, device_map="cuda")


def test_the_examples_of_the_documentation_run():
    assert doctest.testmod(device).failed == 0
