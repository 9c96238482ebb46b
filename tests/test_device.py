"""Tests of device arguments: accepted values, and the error for a device that does not exist."""

import pytest
import torch

from higgs_audio import HiggsAudio, HiggsAudioTokenizer
from higgs_audio.device import resolve_device
from higgs_audio.errors import OptionError

BEST = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("given", "resolved"),
    [("cpu", "cpu"), (torch.device("cpu"), "cpu"), ("meta", "meta"), (None, BEST), ("auto", BEST)],
)
def test_a_device_is_a_name_a_torch_device_or_none(given, resolved):
    assert resolve_device(given) == torch.device(resolved)


@pytest.mark.parametrize("given", ["gpu9", "", "cuda:99", "fpga", "cpu,cuda", 3.5, {"": "cpu"}, ["cpu"], True])
def test_an_invalid_or_missing_device_is_an_option_error(given):
    with pytest.raises(OptionError, match=r"codec_device=.* cannot be used here"):
        resolve_device(given, "codec_device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_rejected_before_the_checkpoint_is_searched(tmp_path):
    with pytest.raises(OptionError, match="device='cuda' cannot be used here"):
        HiggsAudio.from_pretrained(tmp_path / "missing", device="cuda")
    with pytest.raises(OptionError, match="device_map='cuda' cannot be used here"):
        HiggsAudioTokenizer.from_pretrained(tmp_path / "missing", device_map="cuda")
