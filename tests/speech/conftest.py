"""A tiny checkpoint that generates noise, and two that end an utterance never or at the minimum length."""

from pathlib import Path

import pytest
import torch
from noise import make_noise

from higgs_audio import audio
from higgs_audio.checkpoint import as_checkpoint
from higgs_audio.engine import Engine
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.speech.voices import read_voices


@pytest.fixture(scope="module")
def tts(tiny_checkpoint: Path) -> HiggsAudio:
    return HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def endless(tiny_checkpoint: Path) -> HiggsAudio:
    """Its model never ends an utterance."""
    return with_eos_weight(tiny_checkpoint, -20.0)


@pytest.fixture(scope="module")
def brief(tiny_checkpoint: Path) -> HiggsAudio:
    """Its model ends an utterance at the minimum length."""
    return with_eos_weight(tiny_checkpoint, 20.0)


def with_eos_weight(checkpoint: Path, eos_weight: float) -> HiggsAudio:
    """Returns HiggsAudio whose logits of stream eos are `eos_weight` times a positive number, about 5. The first of the
    32 hidden dimensions of every column is 1; no layer changes it, and only the logit of stream eos reads it."""
    tts = HiggsAudio.from_pretrained(checkpoint, device="cpu")
    model = tts.model
    head = model.audio_lm_head.weight.view(model.config.audio_num_codebooks, model.config.codebook_rows, -1)
    with torch.no_grad():
        model.model.embed_audio_tokens.embed_audio_tokens.weight[:, 0] = 1 / model.config.audio_num_codebooks
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj, layer.audio_mlp.down_proj):
                projection.weight[0] = 0
        head[..., 0] = 0
        head[:, model.config.audio_stream_eos_id] = 0
        head[:, model.config.audio_stream_eos_id, 0] = eos_weight
    return tts


@pytest.fixture
def with_engine(tiny_checkpoint: Path):
    """Returns a function that creates a HiggsAudio with the parts of another and its own engine."""

    def with_engine(tts: HiggsAudio, kind: type[Engine] = Engine, **options) -> HiggsAudio:
        other = HiggsAudio(tts.model, tts.processor, read_voices(as_checkpoint(tiny_checkpoint)))
        other.engine = kind(tts.model, **options)
        return other

    return with_engine


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    audio.write(make_noise(1.0), tmp_path / "me.wav")
    return tmp_path / "me.wav"
