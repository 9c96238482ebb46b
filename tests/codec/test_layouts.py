"""Tests of the layouts of stored audio tokenizers: reading, writing and converting them, compared bit by bit."""

import doctest
import importlib

import pytest
import torch
from audio_tokenizers import LAYOUTS, change_config, change_weights, comparable, same_bits
from oracle import RESIDUES, TOKENIZER_MODULE, make_tokenizer, make_waveform
from torch.nn import functional as F

from higgs_audio.checkpoint.checkpoint import read_json
from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig, huggingface, layout
from higgs_audio.errors import CheckpointError

PADDINGS = {"boson": 320, "transformers": 480, "native": 320}


# From one layout to another.


@pytest.mark.parametrize("via", LAYOUTS)
@pytest.mark.parametrize("start", [*LAYOUTS, "early"])
def test_converting_a_layout_and_back_changes_no_bit_of_the_weights(stored, dac_tokenizer, start, via, tmp_path):
    config, state = layout.read(HiggsAudioTokenizer, stored[start])
    layout.write(HiggsAudioTokenizer, config, state, tmp_path / "via", via)
    between = layout.read(HiggsAudioTokenizer, tmp_path / "via")
    layout.write(HiggsAudioTokenizer, *between, tmp_path / "back", "native" if start == "early" else start)
    back_config, back = layout.read(HiggsAudioTokenizer, tmp_path / "back")
    assert same_bits(dac_tokenizer.state_dict(), state)
    assert same_bits(state, between[1])
    assert same_bits(state, back)
    lossy = "boson" in (start, via)
    assert comparable(back_config, lossy) == comparable(config, lossy)


def test_codes_and_samples_are_the_same_from_every_layout_and_after_all_conversions(stored, dac_tokenizer, tmp_path):
    converted = stored["boson"]
    for name in ("transformers", "native", "boson"):
        layout.write(HiggsAudioTokenizer, *layout.read(HiggsAudioTokenizer, converted), tmp_path / name, name)
        converted = tmp_path / name
    waveforms = [make_waveform(4 * 960 + residue) for residue in (0, 119, 631)]
    codes = [dac_tokenizer.encode(waveform).audio_codes for waveform in waveforms]
    for folder in (*stored.values(), converted):
        other = HiggsAudioTokenizer.from_pretrained(folder, acoustic_padding=dac_tokenizer.config.acoustic_padding)
        assert all(
            torch.equal(other.encode(waveform).audio_codes, c) for waveform, c in zip(waveforms, codes, strict=True)
        )
        assert torch.equal(other.decode(codes[0]).audio_values, dac_tokenizer.decode(codes[0]).audio_values)


def test_a_layout_is_detected_from_the_config_whatever_the_name_of_its_folder(folder, tmp_path):
    for name in (*LAYOUTS, "early"):
        path = folder(name).rename(tmp_path / f"no-{name}-higgs_audio_v2_tokenizer")
        assert layout.detect_layout(read_json(path / "config.json")) == name


def test_the_padding_is_that_of_the_layouts_implementation_and_survives_saving(stored, tmp_path):
    for name, padding in (PADDINGS | {"early": 320}).items():
        tokenizer = HiggsAudioTokenizer.from_pretrained(stored[name])
        assert tokenizer.config.acoustic_padding == padding
        tokenizer.save_pretrained(tmp_path / name)
        assert layout.read(HiggsAudioTokenizer, tmp_path / name)[0].acoustic_padding == padding


def test_a_tokenizer_saved_over_its_own_file_is_native_and_unchanged(folder):
    """Loaded weights are copies: saving over the file from which they were loaded must not change them."""
    path = folder("transformers")
    tokenizer = HiggsAudioTokenizer.from_pretrained(path)
    expected = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.save_pretrained(path)
    assert layout.detect_layout(read_json(path / "config.json")) == "native"
    assert same_bits(expected, tokenizer.state_dict())
    assert same_bits(expected, layout.read(HiggsAudioTokenizer, path)[1])


def test_an_early_config_of_the_published_sizes_gives_the_default_config():
    config = {"model_type": "higgs_audio_tokenizer", "num_quantizers": 8, "target_bandwidths": [0.5, 1, 1.5, 2, 4]}
    ours = huggingface.read_config(config, num_codebooks=8)
    assert comparable(ours) == comparable(HiggsAudioTokenizerConfig())


def test_sharded_weights_are_read(dac_tokenizer, tmp_path):
    dac_tokenizer.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same_bits(dac_tokenizer.state_dict(), layout.read(HiggsAudioTokenizer, tmp_path)[1])


def test_a_vocos_tokenizer_can_only_be_written_as_native(tmp_path):
    fast = make_tokenizer("vocos")
    for name in ("boson", "transformers"):
        with pytest.raises(CheckpointError, match="'native'"):
            layout.write(HiggsAudioTokenizer, fast.config, fast.state_dict(), tmp_path / name, name)
        assert list(tmp_path.iterdir()) == []
    layout.write(HiggsAudioTokenizer, fast.config, fast.state_dict(), tmp_path / "native")
    assert same_bits(fast.state_dict(), layout.read(HiggsAudioTokenizer, tmp_path / "native")[1])


def test_a_mask_embedding_is_ignored_and_masking_is_off(folder, dac_tokenizer):
    path = folder("transformers")
    hubert = read_json(path / "config.json")["semantic_model_config"]
    change_config(path, semantic_model_config={**hubert, "mask_time_prob": 0.05, "mask_feature_prob": 0.1})
    change_weights(path, lambda state: state.update({"semantic_model.masked_spec_embed": torch.zeros(24)}))
    config, state = layout.read(HiggsAudioTokenizer, path)
    assert (config.semantic.mask_time_prob, config.semantic.mask_feature_prob) == (0, 0)
    assert same_bits(dac_tokenizer.state_dict(), state)


# Against transformers.


@pytest.fixture
def theirs(torchaudio, stored):
    """The audio tokenizer of transformers, loaded from our export."""
    module = importlib.import_module(TOKENIZER_MODULE)
    model, report = module.HiggsAudioV2TokenizerModel.from_pretrained(
        stored["transformers"], output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("residue", RESIDUES)
def test_transformers_reads_our_export_and_computes_our_codes_and_samples(theirs, stored, residue):
    ours = HiggsAudioTokenizer.from_pretrained(stored["transformers"])
    waveform = make_waveform(6 * 960 + residue, seed=residue)
    with torch.no_grad():
        codes = theirs.encode(waveform).audio_codes
        values = theirs.decode(codes).audio_values
    assert torch.equal(ours.encode(waveform).audio_codes, codes)
    assert codes.shape[1] == 8 and codes.unique().numel() > 20
    torch.testing.assert_close(ours.decode(codes).audio_values, values, rtol=0, atol=1e-5)


def original_codes(model, waveform):
    """Encodes like the original code, step by step, with the modules of the audio tokenizer of transformers."""
    semantic = model.encoder_semantic(model._extract_semantic_features(waveform).transpose(1, 2))
    acoustic = model.acoustic_encoder(waveform)
    if acoustic.shape[2] != semantic.shape[2]:
        acoustic = model.acoustic_encoder(F.pad(waveform, (2 * 160, 2 * 160)))
    shorter = min(acoustic.shape[2], semantic.shape[2])
    joined = torch.cat([acoustic[:, :, :shorter], semantic[:, :, :shorter]], dim=1)
    return model.quantizer.encode(model.fc(joined.transpose(1, 2)).transpose(1, 2)).transpose(0, 1)


@pytest.mark.parametrize("residue", RESIDUES)
def test_a_tokenizer_of_the_original_layout_gives_the_originals_codes(theirs, stored, residue):
    ours = HiggsAudioTokenizer.from_pretrained(stored["boson"])
    waveform = make_waveform(6 * 960 + residue, seed=residue)
    with torch.no_grad():
        expected = original_codes(theirs, waveform)
    assert torch.equal(ours.encode(waveform).audio_codes, expected)
    differs = not torch.equal(expected, theirs.encode(waveform).audio_codes)
    assert differs == (residue in (119, 631)), "the paddings of the two implementations"


def test_a_tokenizer_that_transformers_saved_is_read(theirs, dac_tokenizer, tmp_path):
    theirs.save_pretrained(tmp_path)
    config, state = layout.read(HiggsAudioTokenizer, tmp_path)
    assert same_bits(dac_tokenizer.state_dict(), state)
    assert comparable(config) == comparable(dac_tokenizer.config)


# Documentation.


@pytest.mark.parametrize("name", ["config", "model", "layout", "resample"])
def test_the_examples_of_the_documentation_run(name):
    result = doctest.testmod(importlib.import_module(f"higgs_audio.codec.{name}"))
    assert result.attempted > 0 and result.failed == 0
