"""Tests of the audio tokenizer against the implementation of transformers, and against slow formulas."""

import pytest
import torch
from audio_tokenizers import make_codes
from oracle import RESIDUES, make_tokenizer, make_waveform, transformers_tokenizer
from torch import nn

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig, dac
from higgs_audio.errors import AudioError, CodesError, OptionError


@pytest.fixture(scope="module")
def both_tokenizers(torchaudio):
    """Returns our tokenizer and that of transformers with the same weights, both with the padding of transformers, 480
    samples."""
    ours = make_tokenizer("dac", acoustic_padding=480)
    theirs = transformers_tokenizer(ours.config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


# Against transformers.


def test_the_published_sizes_have_the_tensor_names_and_shapes_of_transformers(torchaudio):
    with torch.device("meta"):
        ours = HiggsAudioTokenizer(HiggsAudioTokenizerConfig()).state_dict()
        theirs = transformers_tokenizer(HiggsAudioTokenizerConfig()).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }
    assert len(ours) == 527
    assert sum(value.numel() for value in ours.values()) == 201_400_553


@pytest.mark.parametrize("residue", RESIDUES)
def test_codes_equal_those_of_transformers_at_every_residue_of_the_length(both_tokenizers, residue):
    ours, theirs = both_tokenizers
    waveform = make_waveform(6 * 960 + residue, seed=residue)
    with torch.no_grad():
        expected = theirs.encode(waveform).audio_codes
    codes = ours.encode(waveform).audio_codes
    assert torch.equal(codes, expected)
    assert codes.unique().numel() > 20, "the codes must vary for the comparison to mean anything"


@pytest.mark.parametrize("num_codebooks", [1, 2, 8])
def test_samples_equal_those_of_transformers_for_any_number_of_codebooks(both_tokenizers, num_codebooks):
    ours, theirs = both_tokenizers
    codes = make_codes(9, batch=2)[:, :num_codebooks]
    with torch.no_grad():
        expected = theirs.decode(codes).audio_values
    values = ours.decode(codes).audio_values
    assert 0.1 < expected.abs().max() < 10
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_a_lower_bandwidth_of_transformers_gives_our_first_codebooks(both_tokenizers):
    ours, theirs = both_tokenizers
    waveform = make_waveform(4000)
    with torch.no_grad():
        expected = theirs.encode(waveform, bandwidth=0.5).audio_codes
    assert torch.equal(ours.encode(waveform).audio_codes[:, :2], expected)


def test_the_semantic_features_of_training_are_reconstructed_as_in_transformers(both_tokenizers):
    ours, theirs = both_tokenizers
    with torch.no_grad():
        output = ours(make_waveform(7 * 960, batch=2), depth=torch.tensor([3, 8]))
        for latent, features in (
            (output.quantized.latent, output.semantic_values),
            (output.quantized.first, output.semantic_first),
        ):
            expected = theirs.decoder_semantic(theirs.fc1(latent).transpose(1, 2)).transpose(1, 2)
            torch.testing.assert_close(features, expected)


def test_the_two_published_paddings_differ_only_where_the_acoustic_branch_lacks_a_frame(both_tokenizers):
    """The original code pads by 320 samples, transformers by 480; both pad only for residues 119 to 631."""
    ours, _ = both_tokenizers
    original = make_tokenizer("dac")
    assert original.config.acoustic_padding == 320
    for residue in RESIDUES:
        waveform = make_waveform(6 * 960 + residue, seed=residue)
        same = torch.equal(original.encode(waveform).audio_codes, ours.encode(waveform).audio_codes)
        assert same == (residue not in (119, 631)), residue


# Lengths.


@pytest.mark.parametrize("num_samples", [119, 120, 960 - 1, 960, 1078, 1079, 1591, 1592, 2 * 960, 12345])
def test_a_recording_gives_a_frame_for_every_960_samples_and_for_a_remainder_of_119_or_more(tokenizer, num_samples):
    codes = tokenizer.encode(make_waveform(num_samples)).audio_codes
    assert codes.shape == (1, 8, (num_samples + 841) // 960)
    assert codes.dtype == torch.int64
    assert bool(((codes >= 0) & (codes < 1024)).all())


@pytest.mark.parametrize("num_frames", [1, 2, 25])
def test_every_frame_decodes_to_960_samples(tokenizer, num_frames):
    values = tokenizer.decode(make_codes(num_frames, batch=2)).audio_values
    assert values.shape == (2, 1, 960 * num_frames)
    assert values.dtype == torch.float32


def test_encoder_frames_equals_the_length_of_the_encoders_output():
    encoder = make_tokenizer("dac").acoustic_encoder
    for num_samples in (631, 632, 960, 1591, 1592, 2551, 2552, 5000):
        expected = encoder(torch.zeros(1, 1, num_samples)).shape[2] if num_samples > 631 else 0
        assert dac.encoder_frames(HiggsAudioTokenizerConfig(), num_samples) == expected


def test_rates_and_sizes_are_derived_from_one_another(tokenizer):
    config = tokenizer.config
    assert (config.hop_length, config.frame_rate, config.semantic_stride, config.hidden_size) == (960, 25, 2, 32)


# The quantizer.


def test_training_and_inference_have_the_same_codes_and_latent(tokenizer):
    latent = torch.randn(3, 5, tokenizer.config.hidden_size)
    depth = torch.tensor([1, 3, 8])
    with torch.no_grad():
        trained = tokenizer.quantizer(latent, depth)
        codes = tokenizer.quantizer.encode(latent)
        for row, count in enumerate(depth):
            expected = tokenizer.quantizer.decode(codes[row : row + 1, :count])[0]
            torch.testing.assert_close(trained.latent[row], expected, rtol=0, atol=1e-4)
    assert torch.equal(trained.codes.transpose(0, 1), codes)


def test_gradients_pass_straight_through_the_quantizer(tokenizer):
    latent = torch.randn(1, 4, tokenizer.config.hidden_size, requires_grad=True)
    gradient = torch.randn_like(latent)
    (tokenizer.quantizer(latent, torch.tensor([8])).latent * gradient).sum().backward()
    torch.testing.assert_close(latent.grad, gradient)


def test_the_nearest_entry_is_that_of_the_smallest_euclidean_distance(tokenizer):
    book = tokenizer.quantizer.layers[0].codebook
    vectors = torch.randn(2, 50, book.embed.shape[1])
    distances = (vectors[:, :, None] - book.embed).pow(2).sum(-1)  # [2, 50, V]
    assert torch.equal(book.nearest(vectors), distances.argmin(-1))


# Batches and files.


def test_the_codes_of_a_recording_do_not_depend_on_its_batch(tokenizer):
    waveforms = make_waveform(7000, batch=3)
    together = tokenizer.encode(waveforms).audio_codes
    for row in range(3):
        assert torch.equal(together[row : row + 1], tokenizer.encode(waveforms[row : row + 1]).audio_codes)


def test_saving_and_loading_changes_no_bit_of_weights_codes_or_samples(tokenizer, tmp_path):
    """The STFT windows of `vocos` are not stored, and loading builds the model on the meta device, without them."""
    tokenizer.save_pretrained(tmp_path)
    loaded, info = HiggsAudioTokenizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [path.suffix for path in tmp_path.glob("model*")] == [".safetensors"]
    ours, theirs = tokenizer.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    waveform, codes = make_waveform(5000), make_codes(12)
    assert torch.equal(tokenizer.encode(waveform).audio_codes, loaded.encode(waveform).audio_codes)
    assert torch.equal(tokenizer.decode(codes).audio_values, loaded.decode(codes).audio_values)
    assert loaded.config.acoustic == tokenizer.config.acoustic
    assert not loaded.training


def test_a_new_tokenizer_has_finite_weights_and_empty_codebooks(tokenizer):
    new = HiggsAudioTokenizer(tokenizer.config)
    assert all(bool(value.isfinite().all()) for value in new.state_dict().values())
    assert all(float(layer.codebook.inited) == 0 for layer in new.quantizer.layers)
    assert not any(isinstance(module, nn.Dropout) and module.p for module in new.semantic_model.modules())


# Invalid input.


@pytest.mark.parametrize(
    "waveform",
    [
        pytest.param(torch.zeros(1, 2, 4800), id="stereo"),
        pytest.param(torch.zeros(4800), id="no batch and no channel"),
        pytest.param(torch.zeros(1, 4800), id="no channel"),
        pytest.param(torch.zeros(1, 1, 118), id="118 samples"),
        pytest.param(torch.zeros(1, 1, 0), id="empty"),
        pytest.param(torch.full((1, 1, 4800), float("nan")), id="NaN"),
        pytest.param(torch.full((1, 1, 4800), float("inf")), id="infinite"),
        pytest.param(torch.zeros(1, 1, 4800, dtype=torch.int16), id="int16"),
    ],
)
def test_a_waveform_that_cannot_be_encoded_is_an_audio_error(tokenizer, waveform):
    with pytest.raises(AudioError):
        tokenizer.encode(waveform)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param(torch.zeros(8, 5, dtype=torch.long), id="no batch"),
        pytest.param(torch.zeros(1, 9, 5, dtype=torch.long), id="nine codebooks"),
        pytest.param(torch.zeros(1, 0, 5, dtype=torch.long), id="no codebook"),
        pytest.param(torch.zeros(1, 8, 0, dtype=torch.long), id="no frame"),
        pytest.param(torch.zeros(1, 8, 5), id="floats"),
        pytest.param(torch.zeros(1, 8, 5, dtype=torch.bool), id="booleans"),
        pytest.param(torch.full((1, 8, 5), 1024), id="stream bos"),
        pytest.param(torch.full((1, 8, 5), -1), id="negative"),
    ],
)
def test_codes_that_cannot_be_decoded_are_a_codes_error(tokenizer, codes):
    with pytest.raises(CodesError):
        tokenizer.decode(codes)


def test_codes_of_any_integer_dtype_are_decoded(tokenizer):
    codes = make_codes(3)
    whole = tokenizer.decode(codes).audio_values
    assert torch.equal(tokenizer.decode(codes.int()).audio_values, whole)
    assert torch.equal(tokenizer.decode(codes.to(torch.int16)).audio_values, whole)


def test_an_unknown_acoustic_model_or_field_names_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'vocos'"):
        HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocoz"})
    with pytest.raises(OptionError, match="did you mean 'hidden_size'"):
        HiggsAudioTokenizerConfig(acoustic_model_config={"hiden_size": 8})
