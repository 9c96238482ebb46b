"""Tests of the original layout: names, shapes and weight normalization of `model.pth`."""

import io
import math

import pytest
import torch
from audio_tokenizers import change_weights, comparable, same_bits
from oracle import make_tokenizer, make_waveform
from torch import nn

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig, boson, huggingface, layout

PUBLISHED_ORIGINAL = {
    "n_filters": 32,
    "D": 256,
    "codebook_dim": 64,
    "target_bandwidths": [0.5, 1, 1.5, 2, 4],
    "ratios": [8, 5, 4, 2, 3],
    "sample_rate": 24000,
    "bins": 1024,
    "n_q": 8,
    "semantic_techer": "hubert_base_general",
}


def original_names():
    """Returns name -> shape of the published model.pth without HuBERT, written independently of the package."""
    shapes = {}

    def normalized(name, channels, *rest, bias=None):
        shapes[f"{name}.weight_g"], shapes[f"{name}.weight_v"] = (channels, 1, 1), (channels, *rest)
        shapes[f"{name}.bias"] = (bias or channels,)

    def unit(name, width):
        for snake, conv, kernel in ((0, 1, 7), (2, 3, 1)):
            shapes[f"{name}.block.{snake}.alpha"] = (1, width, 1)
            normalized(f"{name}.block.{conv}", width, width, kernel)

    normalized("encoder.block.0", 64, 1, 7)
    normalized("decoder_2.model.0", 1024, 256, 7)
    for number, stride in enumerate((8, 5, 4, 2, 3)):
        width, block = 64 << number, f"encoder.block.{number + 1}.block"
        for j in range(3):
            unit(f"{block}.{j}", width)
        shapes[f"{block}.3.alpha"] = (1, width, 1)
        normalized(f"{block}.4", 2 * width, width, 2 * stride)
        width, block = 1024 >> number, f"decoder_2.model.{number + 1}.block"
        shapes[f"{block}.0.alpha"] = (1, width, 1)
        normalized(f"{block}.1", width, width // 2, 2 * stride, bias=width // 2)
        for j in (2, 3, 4):
            unit(f"{block}.{j}", width // 2)
    shapes |= {"encoder.block.6.alpha": (1, 2048, 1), "decoder_2.model.6.alpha": (1, 32, 1)}
    normalized("encoder.block.7", 256, 2048, 3)
    normalized("decoder_2.model.7", 1, 32, 7)

    square = (768, 768, 3)
    shapes["encoder_semantic.conv.conv.weight"] = square
    shapes |= {f"decoder_semantic.conv{i}.conv.weight": square for i in (1, 2)}
    for side in ("encoder_semantic", "decoder_semantic"):
        for block in (f"{side}.conv_blocks.{i}" for i in (0, 1)):
            shapes |= {f"{block}.conv.conv.weight": square, f"{block}.conv.conv.bias": (768,)}
            for j in (0, 1):
                shapes[f"{block}.res_units.{j}.conv1.conv.weight"] = square
                shapes[f"{block}.res_units.{j}.conv2.weight"] = (768, 768, 1)
    for layer in (f"quantizer.vq.layers.{i}" for i in range(8)):
        shapes |= {f"{layer}.project_in.weight": (64, 1024), f"{layer}.project_in.bias": (64,)}
        shapes |= {f"{layer}.project_out.weight": (1024, 64), f"{layer}.project_out.bias": (1024,)}
        shapes |= {f"{layer}._codebook.inited": (1,), f"{layer}._codebook.cluster_size": (1024,)}
        shapes |= {f"{layer}._codebook.{table}": (1024, 64) for table in ("embed", "embed_avg")}
    for name, rows in (("fc_prior", 1024), ("fc_post1", 768), ("fc_post2", 256)):
        shapes |= {f"{name}.weight": (rows, 1024), f"{name}.bias": (rows,)}
    return shapes


def test_every_tensor_of_the_published_sizes_has_the_originals_name_and_shape():
    native = layout.expected_shapes(HiggsAudioTokenizer, HiggsAudioTokenizerConfig())
    stored_names = boson.stored_names(native, num_blocks=5)
    shapes = boson.stored_shapes(native, stored_names)
    hubert = {name: shape for name, shape in native.items() if name.startswith("semantic_model.")}
    assert shapes == original_names() | hubert
    assert shapes["semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original0"] == (1, 1, 128)

    assert len(native) == 527 and sum(map(math.prod, native.values())) == 201_400_553
    pairs = [name for name, parts in stored_names.items() if len(parts) == 2]
    assert len(pairs) == 74 and len(shapes) == 527 + 74
    inverse = {part: name for name, parts in stored_names.items() for part in parts}
    assert len(inverse) == len(shapes) and set(inverse.values()) == set(native)


def test_the_configs_of_the_published_sizes_are_written_as_published():
    config = HiggsAudioTokenizerConfig()
    assert boson.write_config(config) == PUBLISHED_ORIGINAL
    assert comparable(boson.read_config(PUBLISHED_ORIGINAL)) == comparable(config)
    written = huggingface.write_config(config, "float32")
    assert written["target_bandwidths"] == [0.5, 1, 1.5, 2]
    assert written["acoustic_model_config"]["downsampling_ratios"] == [8, 5, 4, 2, 3]


def test_a_weight_is_restored_bit_by_bit_from_its_norm_and_direction():
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        weight = torch.randn(5, 3, 7, generator=generator) * 10.0 ** (number % 20 - 10)
        weight[number % 5] = 0.0
        g, v = boson.split_weight_norm(weight)
        assert torch.equal(boson.fuse_weight_norm(g, v), weight)
        assert g.shape == (5, 1, 1) and v.shape == weight.shape and bool(v.isfinite().all())


def test_fused_weights_are_exact_to_three_roundings():
    """Norm, quotient and product each round once. torch's own kernel sums up to 6,144 squares in fp32."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 1, 7), (256, 2048, 3), (1, 32, 7), (1024, 512, 16)):
        g, v = torch.rand(shape[0], 1, 1, generator=generator), torch.randn(shape, generator=generator)
        exact = g.double() * v.double() / v.double().flatten(1).norm(dim=1)[:, None, None]
        ours, kernel = boson.fuse_weight_norm(g, v), torch._weight_norm(v, g, 0)
        assert float(((ours - exact) / exact).abs().max()) < 3 * 2**-24
        assert float(((kernel - exact) / exact).abs().max()) < 1e-6


def original_unit(width, dilation):
    norm = nn.utils.weight_norm
    first = norm(nn.Conv1d(width, width, 7, dilation=dilation, padding=3 * dilation))
    return Residual(Snake(width), first, Snake(width), norm(nn.Conv1d(width, width, 1)))


class Snake(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x):
        return x + torch.sin(self.alpha * x) ** 2 / (self.alpha + 1e-9)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.block(x)


class Block(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return self.block(x)


def original_encoder(width=4, hidden=8):
    norm = nn.utils.weight_norm
    layers = [norm(nn.Conv1d(1, width, 7, padding=3))]
    for s in (8, 5, 4, 2, 3):
        units = [original_unit(width, dilation) for dilation in (1, 3, 9)]
        down = norm(nn.Conv1d(width, 2 * width, 2 * s, stride=s, padding=(s + 1) // 2))
        layers.append(Block(*units, Snake(width), down))
        width *= 2
    return nn.Sequential(*layers, Snake(width), norm(nn.Conv1d(width, hidden, 3, padding=1)))


def original_decoder(width=32, hidden=8):
    norm = nn.utils.weight_norm
    layers = [norm(nn.Conv1d(hidden, width, 7, padding=3))]
    for s in (8, 5, 4, 2, 3):
        half = width // 2
        up = nn.ConvTranspose1d(width, half, 2 * s, stride=s, padding=(s + 1) // 2, output_padding=s % 2)
        units = [original_unit(half, dilation) for dilation in (1, 3, 9)]
        layers.append(Block(Snake(width), norm(up), *units))
        width = half
    return nn.Sequential(*layers, Snake(width), norm(nn.Conv1d(width, 1, 7, padding=3)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_our_model_pth_gives_the_same_in_a_network_with_the_originals_weight_norm(tmp_path):
    tokenizer = make_tokenizer("dac")
    with (
        torch.no_grad()
    ):  # smaller weights: with random weights the audio is so loud that sines amplify rounding errors to 1e-3
        for name, value in tokenizer.named_parameters():
            value.mul_(0.7 if name.startswith("acoustic") and not name.endswith("alpha") else 1)
    layout.write(HiggsAudioTokenizer, tokenizer.config, tokenizer.state_dict(), tmp_path / "boson", "boson")
    state = torch.load(tmp_path / "boson" / "model.pth", weights_only=True)
    encoder, decoder = original_encoder(), original_decoder()
    for network, prefix in ((encoder, "encoder.block."), (decoder, "decoder_2.model.")):
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        network.load_state_dict(part, strict=True)
    waveform, features = make_waveform(9600), torch.randn(2, 8, 5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(waveform), tokenizer.acoustic_encoder(waveform), rtol=0, atol=1e-5)
        torch.testing.assert_close(decoder(features), tokenizer.acoustic_decoder(features), rtol=0, atol=1e-6)
        assert tokenizer.acoustic_encoder(waveform).std(-1).mean() > 0.1


def test_other_entries_of_the_published_pickle_are_ignored(folder, dac_tokenizer):
    path = folder("boson")

    def change(state):
        state |= {"buffer": io.BytesIO(b"sound"), "steps": 12, "note": "x"}
        state |= {"semantic_model.masked_spec_embed": torch.zeros(24), "fc1.weight": torch.zeros(3, 3)}

    change_weights(path, change)
    assert same_bits(dac_tokenizer.state_dict(), layout.read(HiggsAudioTokenizer, path)[1])


def test_a_pickle_in_torchs_older_format_is_read(folder, dac_tokenizer):
    path = folder("boson")
    state = torch.load(path / "model.pth", weights_only=True)
    torch.save(state, path / "model.pth", _use_new_zipfile_serialization=False)
    assert same_bits(dac_tokenizer.state_dict(), layout.read(HiggsAudioTokenizer, path)[1])
