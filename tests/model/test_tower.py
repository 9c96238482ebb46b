"""Tests of the audio tower of the understanding variant, and of its config."""

import math

import pytest
import torch
from hooks import TorchCalls
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from understanding import (
    BINS,
    TOWER,
    WINDOW,
    make_model,
)

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import OptionError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.model.tower import num_encoded, num_features
from higgs_audio.prompt.processor import HiggsAudioProcessor


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


# The config.


def test_a_config_has_no_tower_by_default():
    config = HiggsAudioConfig()
    assert (config.skip_audio_tower, config.encode_whisper_embed, config.encode_audio_in_tokens) == (True, False, True)
    assert HiggsAudioConfig(skip_audio_tower=False).audio_encoder_config.encoder_layers == 32


def test_the_tower_s_config_is_kept_without_a_tower():
    config = HiggsAudioConfig(audio_encoder_config={"model_type": "higgs_audio_encoder", "encoder_layers": 5})
    again = HiggsAudioConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.to_dict()["audio_encoder_config"]["encoder_layers"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"encode_whisper_embed": True},
        {"encode_audio_in_tokens": False},
        {"audio_encoder_config": WhisperConfig()},
        {"skip_audio_tower": False, "audio_encoder_config": {"d_model": 30, "encoder_attention_heads": 4}},
    ],
)
def test_a_contradiction_in_the_config_is_rejected(fields):
    with pytest.raises(OptionError):
        HiggsAudioConfig(**fields)


def test_a_processor_encodes_audio_as_codes_or_features(tokenizer):
    with pytest.raises(OptionError, match="both False"):
        HiggsAudioProcessor(tokenizer, encode_audio_in_tokens=False)


def test_the_published_size_has_the_published_names_and_shapes():
    """Spec 1.8: the encoder of Whisper large v3, a projector with bias; position embeddings are saved, not trained."""
    with torch.device("meta"):
        model = HiggsAudioForConditionalGeneration(HiggsAudioConfig(skip_audio_tower=False, encode_whisper_embed=True))
    shapes = {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tower = {name: shape for name, shape in shapes.items() if name.startswith("audio_tower.") or "_proj.linear" in name}
    assert tower == published_shapes()
    assert len(shapes) - len(tower) == 397
    assert sum(math.prod(shape) for shape in tower.values()) == 636_968_960 + 3_935_232
    assert "model.audio_tower.embed_positions.weight" not in dict(model.named_parameters())


def published_shapes():
    width, inner = 1280, 5120
    shapes = {"conv1.weight": (width, 128, 3), "conv1.bias": (width,)}
    shapes |= {"conv2.weight": (width, width, 3), "conv2.bias": (width,), "embed_positions.weight": (1500, width)}
    shapes |= {"layer_norm.weight": (width,), "layer_norm.bias": (width,)}
    for layer in (f"layers.{i}." for i in range(32)):
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (width, width) for part in ("q", "k", "v", "out")}
        shapes |= {f"{layer}self_attn.{part}_proj.bias": (width,) for part in ("q", "v", "out")}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        shapes |= {f"{layer}fc1.weight": (inner, width), f"{layer}fc1.bias": (inner,)}
        shapes |= {f"{layer}fc2.weight": (width, inner), f"{layer}fc2.bias": (width,)}
    projector = {"linear.weight": (3072, width), "linear.bias": (3072,)}
    return {f"audio_tower.{name}": shape for name, shape in shapes.items()} | {
        f"audio_encoder_proj.{name}": shape for name, shape in projector.items()
    }


# The tower.


def slow_tower(tower, mels, count):
    """Computes the tower for one window `[bins, M]`, one position at a time, with attention over real positions
    only."""
    config, weights = tower.config, dict(tower.state_dict())

    def convolve(x, name, stride):  # [C, M] -> [D, M / stride]
        weight, padded = weights[f"{name}.weight"], F.pad(x, (1, 1))
        columns = [padded[:, at : at + 3] for at in range(0, x.shape[1], stride)]
        return torch.stack([(weight * c).sum((1, 2)) for c in columns], dim=1) + weights[f"{name}.bias"][:, None]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def norm(x, name):
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
            + (weights[f"{name}.bias"])
        )

    x = F.gelu(convolve(F.gelu(convolve(mels, "conv1", 1)), "conv2", 2)).T  # [L, D]
    x = (x + weights["embed_positions.weight"][: len(x)])[: num_encoded(count)]
    width = config.d_model // config.encoder_attention_heads
    for layer in (f"layers.{i}" for i in range(config.encoder_layers)):
        normed = norm(x, f"{layer}.self_attn_layer_norm")
        q, k, v = (linear(normed, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        heads = [slice(start, start + width) for start in range(0, config.d_model, width)]
        scores = [(q[:, head] @ k[:, head].T / width**0.5).softmax(-1) @ v[:, head] for head in heads]
        x = x + linear(torch.cat(scores, dim=1), f"{layer}.self_attn.out_proj")
        inner = F.gelu(linear(norm(x, f"{layer}.final_layer_norm"), f"{layer}.fc1"))
        x = x + linear(inner, f"{layer}.fc2")
    pairs = [(x[i] + x[i + 1]) / 2 for i in range(0, len(x) - 1, 2)]
    return norm(torch.stack(pairs), "layer_norm")


KERNELS = {"sdpa": "scaled_dot_product_attention", "eager": "softmax"}


@pytest.mark.parametrize("attention", KERNELS)
def test_the_tower_equals_the_slow_implementation(tokenizer, attention):
    """Spec 8, row 28: the original's eager attention adds a mask of 1 and 0, which masks nothing."""
    model = make_model(tokenizer, attn_implementation=attention)
    tower, counts = model.model.audio_tower, torch.tensor([WINDOW, 75, 3, 150])
    mels, called = torch.randn(4, BINS, WINDOW), set()
    with torch.no_grad():
        with TorchCalls(lambda function, *_: called.add(function.__name__)):
            features = tower(mels, counts)
        assert called & {"softmax", "scaled_dot_product_attention"} == {KERNELS[attention]}
        for window, count, given in zip(mels, counts.tolist(), features, strict=True):
            wanted = slow_tower(tower, window, count)
            assert len(wanted) == num_features(count)
            torch.testing.assert_close(given[: len(wanted)], wanted, rtol=0, atol=1e-5)


def test_before_the_pooling_the_tower_equals_the_encoder_of_transformers(model):
    tower = model.model.audio_tower
    theirs = WhisperEncoder(WhisperConfig(**TOWER)).eval()
    theirs.load_state_dict(tower.state_dict())
    theirs.layer_norm = nn.Identity()
    mels = torch.randn(2, BINS, WINDOW)
    with torch.no_grad():
        positions = theirs(mels).last_hidden_state  # [N, L, D]
        wanted = tower.layer_norm((positions[:, 0::2] + positions[:, 1::2]) / 2)
        torch.testing.assert_close(tower(mels, torch.tensor([WINDOW] * 2)), wanted, rtol=0, atol=1e-5)


def test_new_position_embeddings_are_those_of_whisper(tokenizer):
    model, fresh = make_model(tokenizer), WhisperEncoder(WhisperConfig(**TOWER)).embed_positions.weight
    with torch.device("meta"):
        without_memory = HiggsAudioForConditionalGeneration(model.config)
    initialized = without_memory.to_empty(device="cpu")
    initialized.model.audio_tower.embed_positions.weight.zero_()
    initialized.init_weights()
    for one in (model, initialized):
        torch.testing.assert_close(one.model.audio_tower.embed_positions.weight, fresh, rtol=0, atol=1e-5)


def test_num_features_is_the_number_that_the_tower_returns(model):
    tower = model.model.audio_tower
    assert num_features(3000) == 750
    for count in range(3, 30):
        assert tower(torch.randn(1, BINS, count), torch.tensor([count])).shape[1] == num_features(count)
