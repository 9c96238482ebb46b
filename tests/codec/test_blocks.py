"""ConvNeXt blocks on rows: C against torch, torch against the whole."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from higgs_audio.codec.blocks import Blocks, NativeBlocks, blocks_of, fit
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.vocos import ConvNeXt, VocosDecoder
from higgs_audio.native import native_library

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here")


@torch.no_grad()
def make_blocks(is_half=False):
    """Of two widths, with weights that are not small."""
    generator = torch.Generator().manual_seed(0)
    blocks = [ConvNeXt(48, 7, 1), ConvNeXt(32, 5, 2)]
    for weight in (weight for block in blocks for weight in block.parameters()):
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
        if is_half:
            weight.copy_(weight.bfloat16())
    return blocks


def rows(number, width):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1])
def test_rows_are_what_the_block_makes_of_the_whole(number):
    block = make_blocks()[number]
    x = rows(30, block.norm.normalized_shape[0])
    made = Blocks([block])(0, F.pad(x.T, block.pad).T, torch.arange(30))
    torch.testing.assert_close(made, block(x.T[None])[0].T, rtol=1e-5, atol=1e-5)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 13, 96, 97, 200])
def test_rows_in_c_are_those_in_torch(monkeypatch, is_half, number, count):
    """Behind gaps, as those of several sounds are, in any order."""
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", "1")
    blocks = make_blocks(is_half)
    library = native_library()
    assert library is not None
    ours = NativeBlocks(blocks, library)
    assert ours._is_half == is_half
    starts = torch.randperm(2 * count, generator=torch.Generator().manual_seed(count))[:count]
    wide = rows(2 * count + 6, blocks[number].norm.normalized_shape[0])
    wanted = Blocks(blocks)(number, wide, starts)
    made = ours(number, wide, starts)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=2e-5)
    some = starts[:: max(1, count // 5)]
    assert torch.equal(ours(number, wide, some), made[:: max(1, count // 5)])  # whoever is beside them


@needs_compiler
@torch.no_grad()
def test_weights_that_are_written_to_or_converted_are_read_anew(monkeypatch):
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", "1")
    decoder = VocosDecoder(HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"}))
    first = blocks_of(decoder)
    assert isinstance(first, NativeBlocks)
    assert blocks_of(decoder) is first
    wide, starts = rows(7, 384), torch.tensor([0])
    before = first(0, wide, starts)
    decoder.coarse[0].expand.weight.mul_(-2)
    after = blocks_of(decoder)(0, wide, starts)
    torch.testing.assert_close(after, Blocks(list(decoder.coarse))(0, wide, starts), rtol=1e-5, atol=1e-5)
    assert float((after - before).abs().max()) > 1e-3
    assert type(blocks_of(decoder.double())) is Blocks


class Doubled(torch.nn.Linear):
    """As an adapter is: it has the weight, and does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def double(decoder):
    given = decoder.fine[0].expand
    decoder.fine[0].expand = Doubled(given.in_features, given.out_features)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        double,
        lambda decoder: decoder.coarse[0].expand.register_forward_hook(lambda module, given, made: 2 * made),
        lambda decoder: setattr(decoder.coarse[0].norm, "weight", torch.nn.Parameter(torch.rand(384))),
        lambda decoder: decoder.bfloat16().float(),
    ],
    ids=["a part", "a hook", "a parameter", "other numbers"],
)
def test_whatever_is_changed_is_heard(change):
    decoder = VocosDecoder(HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"}))
    for number, width in ((0, 384), (len(decoder.coarse), 256)):
        blocks_of(decoder)(number, rows(7, width), torch.tensor([0]))
    change(decoder)
    for number, width in ((0, 384), (len(decoder.coarse), 256)):
        made = blocks_of(decoder)(number, rows(9, width), torch.arange(3))
        wanted = Blocks([*decoder.coarse, *decoder.fine])(number, rows(9, width), torch.arange(3))
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


@needs_compiler
@torch.no_grad()
def test_under_autocast_torch_does_it():
    blocks, library = make_blocks(), native_library()
    wide = rows(20, 48).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = NativeBlocks(blocks, library)(0, wide, torch.arange(14))
        assert torch.equal(made, Blocks(blocks)(0, wide, torch.arange(14)))


@pytest.mark.parametrize("change", [lambda block: block.half(), lambda block: ConvNeXt(40, 7, 1)])
def test_blocks_that_c_does_not_know_are_left_to_torch(change):
    blocks = make_blocks()
    assert fit(blocks)
    assert not fit([*blocks[1:], change(blocks[0])])
