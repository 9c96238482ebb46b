"""Tests of ConvNeXt blocks on packed rows: C against torch, and torch against the forward pass of the blocks."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from higgs_audio.codec.blocks import ConvNeXtBlocks, NativeConvNeXtBlocks, are_supported, decoder_blocks
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.vocos import ConvNeXt, VocosDecoder
from higgs_audio.native import native_library

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")


@torch.no_grad()
def make_blocks(is_half=False):
    """Returns two blocks of different widths, with large weights."""
    generator = torch.Generator().manual_seed(0)
    blocks = [ConvNeXt(48, 7, 1), ConvNeXt(32, 5, 2)]
    for weight in (weight for block in blocks for weight in block.parameters()):
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
        if is_half:
            weight.copy_(weight.bfloat16())
    return blocks


def make_rows(count, width):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
@pytest.mark.parametrize("index", [0, 1])
def test_packed_rows_equal_the_blocks_forward_pass(index):
    block = make_blocks()[index]
    x = make_rows(30, block.norm.normalized_shape[0])
    output = ConvNeXtBlocks([block])(0, F.pad(x.T, block.pad).T, torch.arange(30))
    torch.testing.assert_close(output, block(x.T[None])[0].T, rtol=1e-5, atol=1e-5)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 13, 96, 97, 200])
def test_rows_in_c_equal_those_in_torch_and_do_not_depend_on_other_rows(monkeypatch, is_half, index, count):
    """The rows have gaps between them, as with several streams, and are in random order."""
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", "1")
    blocks = make_blocks(is_half)
    library = native_library()
    assert library is not None
    native = NativeConvNeXtBlocks(blocks, library)
    assert native.is_half == is_half
    starts = torch.randperm(2 * count, generator=torch.Generator().manual_seed(count))[:count]
    padded = make_rows(2 * count + 6, blocks[index].norm.normalized_shape[0])
    expected = ConvNeXtBlocks(blocks)(index, padded, starts)
    output = native(index, padded, starts)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-5)
    step = max(1, count // 5)
    assert torch.equal(native(index, padded, starts[::step]), output[::step])


def make_decoder():
    return VocosDecoder(HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"}))


@needs_compiler
@torch.no_grad()
def test_blocks_are_cached_until_the_weights_are_modified_or_converted(monkeypatch):
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", "1")
    decoder = make_decoder()
    first = decoder_blocks(decoder)
    assert isinstance(first, NativeConvNeXtBlocks)
    assert decoder_blocks(decoder) is first
    padded, starts = make_rows(7, 384), torch.tensor([0])
    before = first(0, padded, starts)
    decoder.coarse[0].expand.weight.mul_(-2)
    after = decoder_blocks(decoder)(0, padded, starts)
    torch.testing.assert_close(after, ConvNeXtBlocks(list(decoder.coarse))(0, padded, starts), rtol=1e-5, atol=1e-5)
    assert float((after - before).abs().max()) > 1e-3
    assert type(decoder_blocks(decoder.double())) is ConvNeXtBlocks


class DoubledLinear(torch.nn.Linear):
    """Like an adapter, it has the weight of a linear layer and computes a different function."""

    def forward(self, x):
        return 2 * super().forward(x)


def double(decoder):
    linear = decoder.fine[0].expand
    decoder.fine[0].expand = DoubledLinear(linear.in_features, linear.out_features)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        double,
        lambda decoder: decoder.coarse[0].expand.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda decoder: setattr(decoder.coarse[0].norm, "weight", torch.nn.Parameter(torch.rand(384))),
        lambda decoder: decoder.bfloat16().float(),
    ],
    ids=["replaced module", "hook", "replaced parameter", "converted weights"],
)
def test_every_change_of_a_decoder_takes_effect(change):
    decoder = make_decoder()
    for index, width in ((0, 384), (len(decoder.coarse), 256)):
        decoder_blocks(decoder)(index, make_rows(7, width), torch.tensor([0]))
    change(decoder)
    for index, width in ((0, 384), (len(decoder.coarse), 256)):
        output = decoder_blocks(decoder)(index, make_rows(9, width), torch.arange(3))
        expected = ConvNeXtBlocks([*decoder.coarse, *decoder.fine])(index, make_rows(9, width), torch.arange(3))
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@needs_compiler
@torch.no_grad()
def test_torch_runs_the_blocks_under_autocast():
    blocks, library = make_blocks(), native_library()
    padded = make_rows(20, 48).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = NativeConvNeXtBlocks(blocks, library)(0, padded, torch.arange(14))
        assert torch.equal(output, ConvNeXtBlocks(blocks)(0, padded, torch.arange(14)))


@pytest.mark.parametrize("change", [lambda block: block.half(), lambda block: ConvNeXt(40, 7, 1)])
def test_c_does_not_support_other_dtypes_and_widths(change):
    blocks = make_blocks()
    assert are_supported(blocks)
    assert not are_supported([*blocks[1:], change(blocks[0])])
