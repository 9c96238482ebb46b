"""The layouts of stored audio tokenizers: every one read, written and compared, by bits, codes and samples."""

import doctest
import importlib
import io
import json
import os
import pickle
import re
import shutil
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from oracle import RESIDUES, TOKENIZER_MODULE, make_sound, make_tokenizer, stand_in_torchaudio
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from higgs_audio import NANO, checkpoint
from higgs_audio.checkpoint.weights import read_json
from higgs_audio.cli.describe import describe
from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig, boson, huggingface, layout
from higgs_audio.errors import CheckpointError, OptionError
from higgs_audio.speech.tts import load_codec

LAYOUTS = ("boson", "transformers", "native")
PADDINGS = {"boson": 320, "transformers": 480, "native": 320}
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


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("dac")


@pytest.fixture(scope="module")
def torchaudio():
    with stand_in_torchaudio():
        yield


@pytest.fixture(scope="module")
def stored(tokenizer, tmp_path_factory):
    """Layout -> a folder with the same tokenizer; not to be changed."""
    root = tmp_path_factory.mktemp("stored")
    for name in LAYOUTS:
        layout.write(HiggsAudioTokenizer, tokenizer.config, tokenizer.state_dict(), root / name, name)
    write_early(root / "transformers", root / "early")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def folder(stored, tmp_path):
    """A function that copies a stored layout to where it may be changed."""

    def copy(name):
        return Path(shutil.copytree(stored[name], tmp_path / name))

    return copy


def write_early(source, target):
    """The early form of a folder in the current one, as that implementation wrote it."""
    shutil.copytree(source, target)
    change_config(
        target,
        model_type="higgs_audio_tokenizer",
        architectures=["HiggsAudioTokenizer"],
        num_quantizers=8,
        target_bandwidths=[0.5, 1, 1.5, 2, 4],
        downsample_mode="step_down",
        pad=160,
    )


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def change_weights(folder, change):
    """Rewrites the weights after `change(state)`."""
    if (folder / "model.pth").exists():
        state = torch.load(folder / "model.pth", weights_only=True)
        change(state)
        torch.save(state, folder / "model.pth")
        return
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def same_bits(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def comparable(config, hubert_of_inference=False):
    """What a layout keeps of a config."""
    fields = json.loads(json.dumps(config.to_dict(), default=str))
    for name in ("acoustic_padding", "dtype", "architectures", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    hubert = fields["semantic_model_config"]
    kept = boson.HUBERT_FIELDS if hubert_of_inference else hubert.keys() - {"dtype"}
    return {**fields, "semantic_model_config": {name: hubert[name] for name in kept}}


# From one layout to another


@pytest.mark.parametrize("via", LAYOUTS)
@pytest.mark.parametrize("start", [*LAYOUTS, "early"])
def test_through_every_layout_and_back_no_bit_of_the_weights_changes(stored, tokenizer, start, via, tmp_path):
    config, state = layout.read(HiggsAudioTokenizer, stored[start])
    layout.write(HiggsAudioTokenizer, config, state, tmp_path / "via", via)
    between = layout.read(HiggsAudioTokenizer, tmp_path / "via")
    layout.write(HiggsAudioTokenizer, *between, tmp_path / "back", "native" if start == "early" else start)
    back_config, back = layout.read(HiggsAudioTokenizer, tmp_path / "back")
    assert same_bits(tokenizer.state_dict(), state)
    assert same_bits(state, between[1])
    assert same_bits(state, back)
    lossy = "boson" in (start, via)
    assert comparable(back_config, lossy) == comparable(config, lossy)


def test_codes_and_samples_are_the_same_from_every_layout_and_after_a_walk_through_all(stored, tokenizer, tmp_path):
    walk = stored["boson"]
    for name in ("transformers", "native", "boson"):
        layout.write(HiggsAudioTokenizer, *layout.read(HiggsAudioTokenizer, walk), tmp_path / name, name)
        walk = tmp_path / name
    sounds = [make_sound(4 * 960 + residue) for residue in (0, 119, 631)]
    codes = [tokenizer.encode(sound).audio_codes for sound in sounds]
    for folder in (*stored.values(), walk):
        other = HiggsAudioTokenizer.from_pretrained(folder, acoustic_padding=tokenizer.config.acoustic_padding)
        assert all(torch.equal(other.encode(sound).audio_codes, c) for sound, c in zip(sounds, codes, strict=True))
        assert torch.equal(other.decode(codes[0]).audio_values, tokenizer.decode(codes[0]).audio_values)


def test_a_layout_is_told_by_its_config_whatever_its_folder_is_called(folder, tmp_path):
    for name in (*LAYOUTS, "early"):
        path = folder(name).rename(tmp_path / f"no-{name}-higgs_audio_v2_tokenizer")
        assert layout.recognise(read_json(path / "config.json")) == name


def test_the_padding_is_that_of_the_implementation_that_a_layout_is_of_and_stays_when_it_is_saved(stored, tmp_path):
    for name, padding in (PADDINGS | {"early": 320}).items():
        tokenizer = HiggsAudioTokenizer.from_pretrained(stored[name])
        assert tokenizer.config.acoustic_padding == padding
        tokenizer.save_pretrained(tmp_path / name)
        assert layout.read(HiggsAudioTokenizer, tmp_path / name)[0].acoustic_padding == padding


def test_a_saved_tokenizer_is_native_and_loads_where_it_lies_beside_its_old_file(folder):
    """Loaded weights are copies: saving over the file that they came from must not change them on the way."""
    path = folder("transformers")
    tokenizer = HiggsAudioTokenizer.from_pretrained(path)
    wanted = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.save_pretrained(path)
    assert layout.recognise(read_json(path / "config.json")) == "native"
    assert same_bits(wanted, tokenizer.state_dict())
    assert same_bits(wanted, layout.read(HiggsAudioTokenizer, path)[1])


def test_an_early_config_of_the_published_sizes_is_the_published_tokenizer():
    config = {"model_type": "higgs_audio_tokenizer", "num_quantizers": 8, "target_bandwidths": [0.5, 1, 1.5, 2, 4]}
    ours = huggingface.read_config(config, num_codebooks=8)
    assert comparable(ours) == comparable(HiggsAudioTokenizerConfig())


def test_shards_are_read_as_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same_bits(tokenizer.state_dict(), layout.read(HiggsAudioTokenizer, tmp_path)[1])


def test_the_body_that_only_this_package_has_stays_in_our_layout(tmp_path):
    fast = make_tokenizer("vocos")
    for name in ("boson", "transformers"):
        with pytest.raises(CheckpointError, match="'native'"):
            layout.write(HiggsAudioTokenizer, fast.config, fast.state_dict(), tmp_path / name, name)
        assert list(tmp_path.iterdir()) == []
    layout.write(HiggsAudioTokenizer, fast.config, fast.state_dict(), tmp_path / "native")
    assert same_bits(fast.state_dict(), layout.read(HiggsAudioTokenizer, tmp_path / "native")[1])


# The original's names and weights


def original_names():
    """Name -> shape of all tensors of the published model.pth, written out as the format's description lists them."""
    shapes = {}

    def normalised(name, channels, *rest, bias=None):
        shapes[f"{name}.weight_g"], shapes[f"{name}.weight_v"] = (channels, 1, 1), (channels, *rest)
        shapes[f"{name}.bias"] = (bias or channels,)

    def unit(name, width):
        for snake, conv, kernel in ((0, 1, 7), (2, 3, 1)):
            shapes[f"{name}.block.{snake}.alpha"] = (1, width, 1)
            normalised(f"{name}.block.{conv}", width, width, kernel)

    normalised("encoder.block.0", 64, 1, 7)
    normalised("decoder_2.model.0", 1024, 256, 7)
    for number, stride in enumerate((8, 5, 4, 2, 3)):
        width, block = 64 << number, f"encoder.block.{number + 1}.block"
        for j in range(3):
            unit(f"{block}.{j}", width)
        shapes[f"{block}.3.alpha"] = (1, width, 1)
        normalised(f"{block}.4", 2 * width, width, 2 * stride)
        width, block = 1024 >> number, f"decoder_2.model.{number + 1}.block"
        shapes[f"{block}.0.alpha"] = (1, width, 1)
        normalised(f"{block}.1", width, width // 2, 2 * stride, bias=width // 2)
        for j in (2, 3, 4):
            unit(f"{block}.{j}", width // 2)
    shapes |= {"encoder.block.6.alpha": (1, 2048, 1), "decoder_2.model.6.alpha": (1, 32, 1)}
    normalised("encoder.block.7", 256, 2048, 3)
    normalised("decoder_2.model.7", 1, 32, 7)

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


def test_every_tensor_of_the_published_sizes_has_the_originals_name_and_shape_and_finds_back():
    native = layout.expected(HiggsAudioTokenizer, HiggsAudioTokenizerConfig())
    spelled = boson.names(native, num_blocks=5)
    shapes = boson.part_shapes(native, spelled)
    hubert = {name: shape for name, shape in native.items() if name.startswith("semantic_model.")}
    assert shapes == original_names() | hubert
    assert shapes["semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original0"] == (1, 1, 128)

    assert len(native) == 527 and sum(map(numbers, native.values())) == 201_400_553
    pairs = [name for name, parts in spelled.items() if len(parts) == 2]
    assert len(pairs) == 74 and len(shapes) == 527 + 74
    back = {part: name for name, parts in spelled.items() for part in parts}
    assert len(back) == len(shapes) and set(back.values()) == set(native)


def numbers(shape):
    return torch.Size(shape).numel()


def test_the_published_configs_come_out_as_they_were_published():
    config = HiggsAudioTokenizerConfig()
    assert boson.write_config(config) == PUBLISHED_ORIGINAL
    assert comparable(boson.read_config(PUBLISHED_ORIGINAL)) == comparable(config)
    written = huggingface.write_config(config, "float32")
    assert written["target_bandwidths"] == [0.5, 1, 1.5, 2]
    assert written["acoustic_model_config"]["downsampling_ratios"] == [8, 5, 4, 2, 3]


def test_a_weight_comes_back_from_its_norm_and_direction_bit_by_bit():
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        weight = torch.randn(5, 3, 7, generator=generator) * 10.0 ** (number % 20 - 10)
        weight[number % 5] = 0.0
        g, v = boson.split(weight)
        assert torch.equal(boson.fuse(g, v), weight)
        assert g.shape == (5, 1, 1) and v.shape == weight.shape and bool(v.isfinite().all())


def test_fused_weights_are_exact_to_three_roundings_and_torchs_own_kernel_is_not():
    """Of the norm, of the quotient and of the product; the kernel sums up to 6,144 squares in fp32."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 1, 7), (256, 2048, 3), (1, 32, 7), (1024, 512, 16)):
        g, v = torch.rand(shape[0], 1, 1, generator=generator), torch.randn(shape, generator=generator)
        exact = g.double() * v.double() / v.double().flatten(1).norm(dim=1)[:, None, None]
        away = [float(((w - exact) / exact).abs().max()) for w in (boson.fuse(g, v), torch._weight_norm(v, g, 0))]
        assert away[0] < 3 * 2**-24
        assert away[1] < 1e-6


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
def test_a_network_with_the_originals_weight_norm_gives_the_same_from_our_model_pth(tmp_path):
    tokenizer = make_tokenizer("dac")
    with torch.no_grad():  # weaker layers: random ones make a sound so loud that the sines turn rounding into 1e-3
        for name, value in tokenizer.named_parameters():
            value.mul_(0.7 if name.startswith("acoustic") and not name.endswith("alpha") else 1)
    layout.write(HiggsAudioTokenizer, tokenizer.config, tokenizer.state_dict(), tmp_path / "boson", "boson")
    state = torch.load(tmp_path / "boson" / "model.pth", weights_only=True)
    encoder, decoder = original_encoder(), original_decoder()
    for network, prefix in ((encoder, "encoder.block."), (decoder, "decoder_2.model.")):
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        network.load_state_dict(part, strict=True)
    sound, features = make_sound(9600), torch.randn(2, 8, 5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(sound), tokenizer.acoustic_encoder(sound), rtol=0, atol=1e-5)
        torch.testing.assert_close(decoder(features), tokenizer.acoustic_decoder(features), rtol=0, atol=1e-6)
        assert tokenizer.acoustic_encoder(sound).std(-1).mean() > 0.1


def test_what_the_published_pickle_holds_beside_weights_is_left_out(folder, tokenizer):
    path = folder("boson")

    def change(state):
        state |= {"buffer": io.BytesIO(b"sound"), "steps": 12, "note": "x"}
        state |= {"semantic_model.masked_spec_embed": torch.zeros(24), "fc1.weight": torch.zeros(3, 3)}

    change_weights(path, change)
    assert same_bits(tokenizer.state_dict(), layout.read(HiggsAudioTokenizer, path)[1])


def test_a_pickle_of_torchs_older_form_is_read_as_well(folder, tokenizer):
    path = folder("boson")
    state = torch.load(path / "model.pth", weights_only=True)
    torch.save(state, path / "model.pth", _use_new_zipfile_serialization=False)
    assert same_bits(tokenizer.state_dict(), layout.read(HiggsAudioTokenizer, path)[1])


def test_a_mask_embedding_is_ignored_and_masking_is_off(folder, tokenizer):
    path = folder("transformers")
    hubert = read_json(path / "config.json")["semantic_model_config"]
    change_config(path, semantic_model_config={**hubert, "mask_time_prob": 0.05, "mask_feature_prob": 0.1})
    change_weights(path, lambda state: state.update({"semantic_model.masked_spec_embed": torch.zeros(24)}))
    config, state = layout.read(HiggsAudioTokenizer, path)
    assert (config.semantic.mask_time_prob, config.semantic.mask_feature_prob) == (0, 0)
    assert same_bits(tokenizer.state_dict(), state)


# transformers as oracle


@pytest.fixture
def theirs(torchaudio, stored):
    """transformers' tokenizer, loaded from our export."""
    module = importlib.import_module(TOKENIZER_MODULE)
    model, report = module.HiggsAudioV2TokenizerModel.from_pretrained(
        stored["transformers"], output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("residue", RESIDUES)
def test_transformers_reads_our_export_and_gives_our_codes_and_samples(theirs, stored, residue):
    ours = HiggsAudioTokenizer.from_pretrained(stored["transformers"])
    sound = make_sound(6 * 960 + residue, seed=residue)
    with torch.no_grad():
        codes = theirs.encode(sound).audio_codes
        values = theirs.decode(codes).audio_values
    assert torch.equal(ours.encode(sound).audio_codes, codes)
    assert codes.shape[1] == 8 and codes.unique().numel() > 20
    torch.testing.assert_close(ours.decode(codes).audio_values, values, rtol=0, atol=1e-5)


def original_codes(model, sound):
    """The original's encoding, step by step, with the parts of transformers' tokenizer."""
    semantic = model.encoder_semantic(model._extract_semantic_features(sound).transpose(1, 2))
    acoustic = model.acoustic_encoder(sound)
    if acoustic.shape[2] != semantic.shape[2]:
        acoustic = model.acoustic_encoder(F.pad(sound, (2 * 160, 2 * 160)))
    shorter = min(acoustic.shape[2], semantic.shape[2])
    joined = torch.cat([acoustic[:, :, :shorter], semantic[:, :, :shorter]], dim=1)
    return model.quantizer.encode(model.fc(joined.transpose(1, 2)).transpose(1, 2)).transpose(0, 1)


@pytest.mark.parametrize("residue", RESIDUES)
def test_a_tokenizer_of_the_original_layout_gives_the_originals_codes(theirs, stored, residue):
    ours = HiggsAudioTokenizer.from_pretrained(stored["boson"])
    sound = make_sound(6 * 960 + residue, seed=residue)
    with torch.no_grad():
        wanted = original_codes(theirs, sound)
    assert torch.equal(ours.encode(sound).audio_codes, wanted)
    differs = not torch.equal(wanted, theirs.encode(sound).audio_codes)
    assert differs == (residue in (119, 631)), "the paddings of the two implementations"


def test_what_transformers_saves_is_read_by_us(theirs, tokenizer, tmp_path):
    theirs.save_pretrained(tmp_path)
    config, state = layout.read(HiggsAudioTokenizer, tmp_path)
    assert same_bits(tokenizer.state_dict(), state)
    assert comparable(config) == comparable(tokenizer.config)


# from_pretrained


def test_a_tokenizer_is_float32_unless_it_is_asked_for_otherwise(tokenizer, tmp_path):
    state = {name: value.bfloat16() for name, value in tokenizer.state_dict().items()}
    layout.write(HiggsAudioTokenizer, tokenizer.config, state, tmp_path)
    load = HiggsAudioTokenizer.from_pretrained
    loaded = load(tmp_path)
    assert loaded.dtype == torch.float32 and not loaded.training
    assert all(torch.equal(value, state[key].float()) for key, value in loaded.state_dict().items())
    assert load(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "stored_as"), [("boson", torch.float32), ("transformers", torch.bfloat16)])
def test_bfloat16_weights_keep_their_values_in_every_layout(tokenizer, tmp_path, name, stored_as):
    state = {key: value.bfloat16() for key, value in tokenizer.state_dict().items()}
    layout.write(HiggsAudioTokenizer, tokenizer.config, state, tmp_path, name)
    read = layout.read(HiggsAudioTokenizer, tmp_path)[1]
    assert {value.dtype for value in read.values()} == {stored_as}
    assert all(torch.equal(value.float(), state[key].float()) for key, value in read.items())


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, torch.device("cpu")])
def test_a_device_may_be_named_in_every_way(stored, device_map):
    loaded = HiggsAudioTokenizer.from_pretrained(stored["native"], device_map=device_map)
    assert loaded.device.type == ("cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu")


def test_a_whole_checkpoint_gives_the_tokenizer_inside(tiny_checkpoint):
    inside = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    for whole in (HiggsAudioTokenizer.from_pretrained(tiny_checkpoint), load_codec(tiny_checkpoint, "cpu")):
        assert same_bits(inside.state_dict(), whole.state_dict())
    assert HiggsAudioTokenizer.from_pretrained("nano").config.body == "vocos"
    assert checkpoint.resolve("nano") == NANO


def test_a_repository_gives_config_first_and_then_the_weights_of_its_layout_and_no_other(
    monkeypatch, stored, tokenizer
):
    """The published repository was rewritten in place: one name, two layouts, and the pickle only where needed."""
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, tuple(allow_patterns)))
        return str(stored["boson" if revision == "9d4988fb" else "transformers"])

    monkeypatch.setattr("higgs_audio.checkpoint.find.snapshot_download", snapshot_download)
    name = "bosonai/higgs-audio-v2-tokenizer"
    for revision, weights in (("9d4988fb", ("model.pth",)), (None, layout.WEIGHTS["transformers"])):
        asked.clear()
        loaded = HiggsAudioTokenizer.from_pretrained(name, revision=revision)
        assert same_bits(tokenizer.state_dict(), loaded.state_dict())
        assert asked == [(name, revision, ("*.json", "codec/*")), (name, revision, ("config.json", *weights))]
    assert not any("pth" in pattern for pattern in checkpoint.DOWNLOADED)


def test_the_options_of_a_repository_are_those_of_the_model(monkeypatch, stored, tokenizer, tmp_path):
    """And `subfolder` is where everything is asked for."""
    shutil.copytree(stored["native"], tmp_path / "inner")
    asked = []

    def snapshot_download(repository, **options):
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr("higgs_audio.checkpoint.find.snapshot_download", snapshot_download)
    hub = {"revision": "v1", "cache_dir": "x", "token": "y", "local_files_only": True, "force_download": False}
    loaded = HiggsAudioTokenizer.from_pretrained("someone/tokenizer", **hub, subfolder="inner")
    assert same_bits(tokenizer.state_dict(), loaded.state_dict())
    weights = [f"inner/{name}" for name in layout.WEIGHTS["native"]]
    patterns = ["inner/*.json", "inner/codec/*"], ["inner/config.json", *weights]
    assert asked == [{**hub, "allow_patterns": names} for names in patterns]
    local = HiggsAudioTokenizer.from_pretrained(tmp_path, subfolder="inner")
    assert same_bits(tokenizer.state_dict(), local.state_dict())
    assert HiggsAudioTokenizer.from_pretrained("nano", subfolder="codec").config.body == "vocos"


@pytest.mark.parametrize("name", [None, 3, "", "x" * 300])
def test_what_names_no_tokenizer_is_a_checkpoint_error(name):
    with pytest.raises(CheckpointError, match="no model "):
        HiggsAudioTokenizer.from_pretrained(name)


@pytest.mark.parametrize("name", [*LAYOUTS, "early"])
def test_info_describes_a_tokenizer_of_every_layout(stored, tokenizer, name):
    told = describe(stored[name])
    assert told["audio tokenizer"]["layout"] == name
    assert told["audio tokenizer"]["codebooks"] == "8 of 1024"
    counts = told["parameters of the audio tokenizer"]
    assert counts["total"] == f"{sum(value.numel() for value in tokenizer.state_dict().values()):,}"
    assert "other" not in counts


def test_a_pushed_tokenizer_is_what_a_reader_of_the_repository_gets(monkeypatch, tokenizer, tmp_path):
    def create_commit(self, repo_id, operations, **_):
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, tmp_path / operation.path_in_repo)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    tokenizer.push_to_hub("someone/tokenizer")
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert same_bits(tokenizer.state_dict(), HiggsAudioTokenizer.from_pretrained(tmp_path).state_dict())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"acoustic_paddin": 480}, "did you mean 'acoustic_padding'"),
        ({"device_map": "gpu:0"}, "'cuda:0'"),
        ({"device_map": {"fc": "cpu", "fc1": "cpu"}}, "device_map"),
        ({"dtype": "nonsense"}, "dtype='nonsense'; allowed: auto, bfloat16"),
        ({"dtype": "bflot16"}, "did you mean 'bfloat16'"),
        ({"torch_dtype": torch.int8}, "dtype=torch.int8"),
        ({"dtype": 16}, "dtype=16"),
        ({"attn_implementation": "nonsense"}, "does not load with these options"),
        ({"acoustic_padding": "wide"}, "acoustic_padding cannot be used"),
        ({"block_dilations": 3}, "block_dilations cannot be used"),
        ({"acoustic_model_config": "dac"}, "acoustic_model_config cannot be used"),
        ({"cachedir": "x"}, "did you mean 'cache_dir'"),
    ],
)
def test_an_unknown_option_is_an_option_error(stored, option, message):
    with pytest.raises(OptionError, match=message):
        HiggsAudioTokenizer.from_pretrained(stored["native"], **option)


def test_sizes_that_the_weights_do_not_have_are_not_filled_with_noise(stored):
    with pytest.raises(CheckpointError, match=r"quantizer\.quantizers\.8\.codebook\.embed"):
        HiggsAudioTokenizer.from_pretrained(stored["native"], num_codebooks=9)
    with pytest.raises(CheckpointError, match="missing"):
        HiggsAudioTokenizer.from_pretrained(stored["native"], config=HiggsAudioTokenizerConfig())


# Bad files


@pytest.mark.parametrize("name", [*LAYOUTS, "early"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_a_checkpoint_error(folder, name, share):
    path = folder(name)
    (file,) = path.glob("model.*")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        layout.read(HiggsAudioTokenizer, path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("boson", "encoder.block.1.block.0.block.1.weight_g"),
        ("boson", "quantizer.vq.layers.3._codebook.embed"),
        ("transformers", "acoustic_encoder.block.0.res_unit1.conv1.weight"),
        ("early", "fc1.weight"),
        ("native", "semantic_model.encoder.layers.1.attention.q_proj.weight"),
    ],
)
def test_a_tensor_that_is_missing_added_or_misshapen_is_named(folder, name, tensor):
    def change(state):
        state[f"{tensor}.more"] = state.pop(tensor)
        state[other] = state[other][:1].clone()
        state["strange"] = torch.zeros(3, dtype=torch.int64)

    other = {"boson": "fc_prior.weight"}.get(name, "fc.weight")
    path = folder(name)
    change_weights(path, change)
    with pytest.raises(CheckpointError) as error:
        layout.read(HiggsAudioTokenizer, path)
    for part in (
        f"1 missing ({tensor})",
        "2 unexpected (",
        f"{tensor}.more",
        f"{other} [1, 32]",
        "[32, 32]",
        "strange",
    ):
        assert part in str(error.value)


def test_a_long_list_of_missing_tensors_is_cut_and_counted(folder):
    path = folder("native")
    change_weights(path, lambda state: [state.pop(name) for name in list(state) if name.startswith("semantic_model")])
    with pytest.raises(CheckpointError, match=r"and \d+ more\)"):
        layout.read(HiggsAudioTokenizer, path)


def only(state, count):
    for name in [name for name in state if name.startswith("quantizer") and int(re.search(r"\d+", name)[0]) >= count]:
        del state[name]


def test_bandwidths_of_sixteen_codebooks_give_the_eight_of_the_weights(folder, tokenizer):
    path = folder("transformers")
    change_config(path, target_bandwidths=[0.5, 1, 1.5, 2, 4])
    config, state = layout.read(HiggsAudioTokenizer, path)
    assert config.num_codebooks == 8
    assert same_bits(tokenizer.state_dict(), state)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("transformers", {"num_quantizers": 16}, "says num_quantizers 16, the weights hold 8"),
        ("early", {"num_quantizers": 16}, "says num_quantizers 16, the weights hold 8"),
        ("boson", {"n_q": 16}, r"missing \(quantizer\.vq\.layers\.10"),
        ("boson", {"n_q": 6}, r"unexpected \(quantizer\.vq\.layers\.6"),
        ("native", {"num_codebooks": 16}, r"missing \(quantizer\.quantizers\.10"),
        ("transformers", {"codebook_size": 1026}, r"embed \[1024, 6\] instead of \[1026, 6\]"),
        ("boson", {"bins": 1026}, r"embed \[1024, 6\] instead of \[1026, 6\]"),
        ("boson", {"bins": [8, 8, 8]}, "bins"),
        ("boson", {"semantic_techer": "wavlm_base_plus"}, "known: hubert_base_general"),
        ("boson", {"D": "wide"}, "config.json cannot be used"),
        ("transformers", {"strides": [2, 1]}, "strides"),
        ("transformers", {"semantic_model_config": {"model_type": "wavlm"}}, "'hubert'"),
        ("transformers", {"acoustic_model_config": {"model_type": "encodec"}}, "'dac'"),
        ("native", {"acoustic_model_config": {"body": "dacs"}}, "did you mean 'dac'"),
        ("native", {"model_type": "encodec"}, "known: higgs_audio_v2_tokenizer, higgs_audio_tokenizer, and"),
        ("native", {"model_type": "higgs_audio_v2"}, "known: higgs_audio_v2_tokenizer"),
    ],
)
def test_a_config_that_contradicts_the_weights_or_is_of_something_else_is_a_checkpoint_error(
    folder, name, fields, message
):
    path = folder(name)
    change_config(path, **fields)
    with pytest.raises(CheckpointError, match=message):
        HiggsAudioTokenizer.from_pretrained(path)


def test_codebooks_that_the_config_does_not_imply_are_a_checkpoint_error(folder):
    path = folder("transformers")
    change_weights(path, lambda state: only(state, 6))
    with pytest.raises(CheckpointError, match="8 codebooks, the weights hold 6"):
        layout.read(HiggsAudioTokenizer, path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"config"', '{"n_filters": 32}'])
def test_a_config_that_is_no_config_is_a_checkpoint_error(folder, content):
    path = folder("native")
    (path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        layout.read(HiggsAudioTokenizer, path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_without_weights_says_which_file_it_lacks(folder, name):
    path = folder(name)
    (file,) = path.glob("model.*")
    file.unlink()
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        HiggsAudioTokenizer.from_pretrained(path)


class Exploit:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "older torch", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_of_it_runs(folder, tmp_path, form):
    path, witness = folder("boson"), tmp_path / "witness"
    state = torch.load(path / "model.pth", weights_only=True) | {"fc_prior.weight": Exploit(witness)}
    if form == "pickle":
        (path / "model.pth").write_bytes(pickle.dumps({"weights": Exploit(witness)}, protocol=2))
    else:
        torch.save(state, path / "model.pth", _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError, match=r"tensors \(posix.mkdir\), and nothing of it was run") as refused:
        HiggsAudioTokenizer.from_pretrained(path)
    told = "".join(traceback.format_exception(refused.value))
    assert "weights_only" not in told and "add_safe_globals" not in told, "torch tells how to run it all the same"
    assert not witness.exists()
    torch.load(path / "model.pth", weights_only=False) if form == "torch" else None
    assert witness.exists() == (form == "torch"), "the exploit works where pickles are trusted"


def test_a_pickle_that_is_no_mapping_is_a_checkpoint_error(folder):
    path = folder("boson")
    torch.save([torch.zeros(3)], path / "model.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        layout.read(HiggsAudioTokenizer, path)


def test_what_cannot_be_written_leaves_nothing(tokenizer, tmp_path):
    state = tokenizer.state_dict()
    state.pop("fc.weight")
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        layout.write(HiggsAudioTokenizer, tokenizer.config, state, tmp_path / "out", "boson")
    with pytest.raises(OptionError, match="did you mean 'boson'"):
        layout.write(HiggsAudioTokenizer, tokenizer.config, state, tmp_path / "out", "bosson")
    assert list(tmp_path.iterdir()) == []


def test_files_take_the_place_of_others_when_all_are_complete(monkeypatch, tokenizer, tmp_path):
    layout.write(HiggsAudioTokenizer, tokenizer.config, tokenizer.state_dict(), tmp_path / "out", "native")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(layout, "save_file", full)
    with pytest.raises(CheckpointError, match="No space"):
        layout.write(HiggsAudioTokenizer, tokenizer.config, tokenizer.state_dict(), tmp_path / "out", "transformers")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Documentation


@pytest.mark.parametrize("name", ["config", "model", "layout", "resample"])
def test_the_examples_of_the_documentation_run(name):
    result = doctest.testmod(importlib.import_module(f"higgs_audio.codec.{name}"))
    assert result.attempted > 0 and result.failed == 0
