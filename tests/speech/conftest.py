"""A tiny checkpoint that generates noise, and a switch for its stream eos."""

from pathlib import Path

import pytest
import torch
from noise import make_noise

from higgs_audio import audio
from higgs_audio.speech.tts import HiggsAudio


@pytest.fixture(scope="module")
def tts(tiny_checkpoint: Path) -> HiggsAudio:
    return HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def bias_eos(tts, monkeypatch):
    """A function that adds a bias to the logits of stream eos: -100 for no end, 100 for one at the first chance."""

    def bias_eos(bias):
        decode, biases = tts.engine.runner.decode, torch.zeros(1026)
        biases[1025] = bias
        monkeypatch.setattr(tts.engine.runner, "decode", lambda *args: decode(*args) + biases)

    return bias_eos


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    audio.write(make_noise(1.0), tmp_path / "me.wav")
    return tmp_path / "me.wav"
