"""The audio tokenizer: transformers' own as oracle of the published body, slow formulas and perturbation otherwise."""

import copy

import numpy as np
import pytest
import soxr
import torch
from oracle import RESIDUES, make_sound, make_tokenizer, randomize, stand_in_torchaudio, tokenizer_twin
from torch import nn

from higgs_audio.codec import (
    HiggsAudioTokenizer,
    HiggsAudioTokenizerConfig,
    StreamDecoder,
    dac,
    decode_stream,
    push_many,
    vocos,
)
from higgs_audio.codec import resample as resample_module
from higgs_audio.codec.resample import resample
from higgs_audio.errors import AudioError, CodesError, OptionError
from higgs_audio.speech.result import LOW_LATENCY_FRAMES
from higgs_audio.speech.tts import HiggsAudio


def make_codes(num_frames, batch=1, seed=0):
    return torch.randint(0, 1024, (batch, 8, num_frames), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["dac", "vocos", "harmonic"])
def tokenizer(request):
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def vocos_tokenizer():
    return make_tokenizer("vocos")


@pytest.fixture(scope="module")
def torchaudio():
    with stand_in_torchaudio():
        yield


@pytest.fixture(scope="module")
def twins(torchaudio):
    """Ours and transformers', with the same weights; transformers pads by 480 samples, the original by 320."""
    ours = make_tokenizer("dac", acoustic_padding=480)
    theirs = tokenizer_twin(ours.config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


# transformers as oracle


def test_the_published_sizes_have_every_tensor_of_transformers_by_name_and_shape(torchaudio):
    with torch.device("meta"):
        ours = HiggsAudioTokenizer(HiggsAudioTokenizerConfig()).state_dict()
        theirs = tokenizer_twin(HiggsAudioTokenizerConfig()).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }
    assert len(ours) == 527
    assert sum(value.numel() for value in ours.values()) == 201_400_553


@pytest.mark.parametrize("residue", RESIDUES)
def test_codes_are_those_of_transformers_at_every_residue_of_the_length(twins, residue):
    ours, theirs = twins
    sound = make_sound(6 * 960 + residue, seed=residue)
    with torch.no_grad():
        wanted = theirs.encode(sound).audio_codes
    codes = ours.encode(sound).audio_codes
    assert torch.equal(codes, wanted)
    assert codes.unique().numel() > 20, "codes that hardly vary would prove nothing"


@pytest.mark.parametrize("num_codebooks", [1, 2, 8])
def test_samples_are_those_of_transformers_for_any_number_of_codebooks(twins, num_codebooks):
    ours, theirs = twins
    codes = make_codes(9, batch=2)[:, :num_codebooks]
    with torch.no_grad():
        wanted = theirs.decode(codes).audio_values
    values = ours.decode(codes).audio_values
    assert 0.1 < wanted.abs().max() < 10
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-5)


def test_a_lower_bandwidth_of_transformers_is_the_first_codebooks_of_ours(twins):
    ours, theirs = twins
    sound = make_sound(4000)
    with torch.no_grad():
        wanted = theirs.encode(sound, bandwidth=0.5).audio_codes
    assert torch.equal(ours.encode(sound).audio_codes[:, :2], wanted)


def test_the_semantic_decoder_of_training_is_that_of_transformers(twins):
    ours, theirs = twins
    latent = torch.randn(2, 7, ours.config.hidden_size)
    wanted = theirs.decoder_semantic(theirs.fc1(latent).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours._semantic_from(latent), wanted)


def test_the_two_published_paddings_differ_only_where_the_acoustic_branch_lacks_a_frame(twins):
    """The original code pads by 320 samples, transformers by 480, and both only for residues 119 to 631."""
    ours, _ = twins
    original = make_tokenizer("dac")
    assert original.config.acoustic_padding == 320
    for residue in RESIDUES:
        sound = make_sound(6 * 960 + residue, seed=residue)
        same = torch.equal(original.encode(sound).audio_codes, ours.encode(sound).audio_codes)
        assert same == (residue not in (119, 631)), residue


# Lengths


@pytest.mark.parametrize("num_samples", [119, 120, 960 - 1, 960, 1078, 1079, 1591, 1592, 2 * 960, 12345])
def test_a_recording_gives_one_frame_for_every_960_samples_and_one_more_from_119_samples_on(tokenizer, num_samples):
    codes = tokenizer.encode(make_sound(num_samples)).audio_codes
    assert codes.shape == (1, 8, (num_samples + 841) // 960)
    assert codes.dtype == torch.int64
    assert bool(((codes >= 0) & (codes < 1024)).all())


@pytest.mark.parametrize("num_frames", [1, 2, 25])
def test_every_frame_gives_960_samples(tokenizer, num_frames):
    values = tokenizer.decode(make_codes(num_frames, batch=2)).audio_values
    assert values.shape == (2, 1, 960 * num_frames)
    assert values.dtype == torch.float32


def test_the_formula_for_the_frames_of_the_encoder_is_what_its_convolutions_give():
    body = make_tokenizer("dac").acoustic_encoder
    for num_samples in (631, 632, 960, 1591, 1592, 2551, 2552, 5000):
        expected = body(torch.zeros(1, 1, num_samples)).shape[2] if num_samples > 631 else 0
        assert dac.encoder_frames(HiggsAudioTokenizerConfig(), num_samples) == expected


def test_rates_and_sizes_are_derived_from_one_another(tokenizer):
    config = tokenizer.config
    assert (config.hop_length, config.frame_rate, config.semantic_stride, config.hidden_size) == (960, 25, 2, 32)


# The resampler


def slow_resample(sound, old, new):
    """The windowed sinc of each output sample, summed over every input sample, in float64."""
    base = 0.99 * min(old, new)
    times = np.arange(len(sound)) / old
    out = np.empty(-(-len(sound) * new // old))
    for i in range(len(out)):
        t = np.clip((times - i / new) * base, -6, 6)
        out[i] = np.sum(sound * np.sinc(t) * np.cos(np.pi * t / 12) ** 2) * base / old
    return out


@pytest.mark.parametrize("num_samples", [1, 2, 3, 100, 301])
def test_resampling_is_the_windowed_sinc_summed_sample_by_sample(num_samples):
    sound = make_sound(num_samples)[0, 0]
    wanted = slow_resample(sound.double().numpy(), 3, 2)
    out = resample(sound, 24000, 16000)
    assert out.shape == (-(-2 * num_samples // 3),)
    np.testing.assert_allclose(out.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(("source_rate", "target_rate"), [(16000, 24000), (48000, 24000), (44100, 24000)])
def test_resampling_holds_for_other_pairs_of_rates(source_rate, target_rate):
    divisor = np.gcd(source_rate, target_rate)
    sound = make_sound(200)[0, 0]
    wanted = slow_resample(sound.double().numpy(), source_rate // divisor, target_rate // divisor)
    np.testing.assert_allclose(resample(sound, source_rate, target_rate).numpy(), wanted, atol=1e-6)


def test_resampling_hears_what_soxr_hears_below_the_cutoff():
    seconds = torch.arange(24000) / 24000
    sound = sum(torch.sin(2 * torch.pi * f * seconds + f) for f in (110, 440, 1760, 5000)) / 4
    wanted = torch.from_numpy(soxr.resample(sound.numpy(), 24000, 16000))
    middle = slice(200, -200)
    torch.testing.assert_close(resample(sound, 24000, 16000)[middle], wanted[middle], rtol=0, atol=5e-3)


def test_resampling_keeps_the_leading_dimensions_and_passes_gradients():
    sound = make_sound(300, batch=2).requires_grad_()
    out = resample(sound, 24000, 16000)
    out.pow(2).sum().backward()
    assert out.shape == (2, 1, 200)
    assert bool((sound.grad != 0).all())
    assert resample(sound, 24000, 24000) is sound


def test_a_process_that_resampled_in_inference_mode_can_still_train():
    """The filter is kept. Made in inference mode, by the alignment of a clip, it stopped the next training run."""
    resample_module._kernel.cache_clear()
    with torch.inference_mode():
        resample(make_sound(300), 24000, 16000)
    sound = make_sound(300).requires_grad_()
    resample(sound, 24000, 16000).sum().backward()
    assert bool(sound.grad.any())


# The quantizer


def test_training_and_inference_choose_the_same_codes_and_the_same_latent(tokenizer):
    latent = torch.randn(3, 5, tokenizer.config.hidden_size)
    depth = torch.tensor([1, 3, 8])
    with torch.no_grad():
        trained = tokenizer.quantizer(latent, depth)
        codes = tokenizer.quantizer.encode(latent)
        for row, count in enumerate(depth):
            wanted = tokenizer.quantizer.decode(codes[row : row + 1, :count])[0]
            torch.testing.assert_close(trained.latent[row], wanted, rtol=0, atol=1e-4)
    assert torch.equal(trained.codes.transpose(0, 1), codes)


def test_the_decoders_wishes_pass_straight_through_the_quantizer(tokenizer):
    latent = torch.randn(1, 4, tokenizer.config.hidden_size, requires_grad=True)
    wish = torch.randn_like(latent)
    (tokenizer.quantizer(latent, torch.tensor([8])).latent * wish).sum().backward()
    torch.testing.assert_close(latent.grad, wish)


def test_the_nearest_entry_is_the_nearest_by_euclidean_distance(tokenizer):
    book = tokenizer.quantizer.layers[0].codebook
    vectors = torch.randn(2, 50, book.embed.shape[1])
    distances = (vectors[:, :, None] - book.embed).pow(2).sum(-1)  # [2, 50, V]
    assert torch.equal(book.nearest(vectors), distances.argmin(-1))


# Streaming


def in_random_chunks(codes, seed):
    """Codes [1, K, F] in pieces [K, n], some of them empty."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, codes.shape[2] + 1, 9))
    return [piece.contiguous() for piece in torch.tensor_split(codes[0], torch.tensor(cuts), dim=1)]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_in_random_chunks_is_the_decoding_of_the_whole(tokenizer, seed):
    codes = make_codes(75, seed=seed)
    if (
        tokenizer.pitch_hop is not None
    ):  # random filters make the 170th harmonic as loud as the first: see below for nano
        tokenizer = copy.deepcopy(tokenizer).double()
    whole = tokenizer.decode(codes).audio_values[0, 0]
    stream = torch.cat(list(decode_stream(tokenizer, in_random_chunks(codes, seed))))
    assert stream.shape == whole.shape
    torch.testing.assert_close(stream, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_a_stream_of_nothing_is_silent_and_a_stream_of_one_frame_whole(tokenizer):
    one = make_codes(1)
    assert list(decode_stream(tokenizer, [])) == []
    assert list(decode_stream(tokenizer, [one[0, :, :0]])) == []
    (sound,) = decode_stream(tokenizer, [one[0]])
    torch.testing.assert_close(sound, tokenizer.decode(one).audio_values[0, 0])


def test_a_stream_keeps_no_more_than_its_context_and_waits_for_no_more_than_its_right_side(tokenizer):
    left, right = tokenizer.decoder_context
    decoder, sounded, sizes = StreamDecoder(tokenizer), 0, []
    for number, frame in enumerate(make_codes(60)[0].split(1, dim=1), start=1):
        sounded += len(decoder.push(frame))
        certain = 960 * max(0, number - right)
        assert sounded == certain if tokenizer.config.body == "dac" else certain <= sounded < certain + 960
        sizes.append(kept_by(decoder))
    assert max(sizes) == sizes[-1] == sizes[left + right + 1]


def kept_by(decoder):
    """Numbers that a stream decoder remembers."""
    state = decoder._way.state
    if isinstance(state, tuple):
        return state[0].numel()
    sums = 0 if state.left is None else state.left[0].numel()
    return sums + sum(kept.numel() for kept in state.kept if kept is not None)


@pytest.mark.parametrize("look_ahead", [None, 1])
def test_streams_decoded_together_are_what_each_is_alone(tokenizer, look_ahead):
    """Of different lengths, in pieces of different sizes, some of them empty; one ends before the others begin."""
    tokenizer = copy.deepcopy(tokenizer).double()
    lengths = [40, 7, 1, 25]
    pieces = [in_random_chunks(make_codes(length, seed=length), length) for length in lengths]
    wanted = []
    for parts in pieces:
        decoder = StreamDecoder(tokenizer, look_ahead)
        wanted.append(torch.cat([*(decoder.push(part) for part in parts[:-1]), decoder.push(parts[-1], True)]))
    decoders = [StreamDecoder(tokenizer, look_ahead) for _ in lengths]
    made, delays = [[] for _ in lengths], [0, 3, 12, 1]
    for step in range(30):
        live = [n for n, delay in enumerate(delays) if 0 <= step - delay < len(pieces[n])]
        if live:
            codes = [pieces[n][step - delays[n]] for n in live]
            last = [step - delays[n] == len(pieces[n]) - 1 for n in live]
            for n, sound in zip(live, push_many([decoders[n] for n in live], codes, last), strict=True):
                made[n].append(sound)
    for length, parts, whole in zip(lengths, made, wanted, strict=True):
        assert len(whole) == 960 * length
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9 * float(whole.abs().max()))


@pytest.mark.parametrize("place", ["codes", "sums"])
def test_a_push_that_fails_leaves_all_streams_as_they_were(tokenizer, monkeypatch, place):
    """Before anything has changed, and behind all layers."""
    if place == "sums" and tokenizer.config.body == "dac":
        pytest.skip("its stream has no layers that remember")
    codes = [make_codes(30, seed=seed)[0] for seed in (1, 2)]
    decoders = [StreamDecoder(tokenizer) for _ in codes]
    push_many(decoders, [part[:, :12] for part in codes], [False, False])
    rest = [part[:, 12:] for part in codes]
    with monkeypatch.context() as failing:
        if place == "sums":
            failing.setattr(tokenizer.acoustic_decoder, "sums", lambda frames: 1 / 0)
        with pytest.raises(ZeroDivisionError if place == "sums" else CodesError):
            push_many(decoders, [rest[0], rest[1] + 5000 * (place == "codes")], [True, True])
    twins = [StreamDecoder(tokenizer) for _ in codes]
    push_many(twins, [part[:, :12] for part in codes], [False, False])
    for decoder, twin, part in zip(decoders, twins, rest, strict=True):
        assert torch.equal(decoder.push(part, True), twin.push(part, True))


class Shortsighted(HiggsAudioTokenizer):
    """A tokenizer that claims a smaller context than it has."""

    missing = (0, 0)

    @property
    def decoder_context(self):
        left, right = super().decoder_context
        return left - self.missing[0], right - self.missing[1]


def exact(tokenizer):
    """In float64 with large weights, where the weakest influence of a frame is far above the noise."""
    tokenizer = copy.deepcopy(tokenizer).double()
    randomize(tokenizer, seed=1, gain=4)
    tokenizer.__class__ = Shortsighted
    return tokenizer


def stream_error(tokenizer, codes):
    """Largest difference of a stream, frame by frame, from the whole, relative to the loudest sample."""
    whole = tokenizer.decode(codes).audio_values[0, 0]
    stream = torch.cat(list(decode_stream(tokenizer, codes[0].split(1, dim=1))))
    return float((stream - whole).abs().max() / whole.abs().max())


def test_with_large_weights_the_context_is_enough_for_either_body(tokenizer):
    assert stream_error(exact(tokenizer), make_codes(90)) < (1e-12 if tokenizer.pitch_hop is None else 1e-9)


@pytest.fixture(scope="module")
def spoken():
    """nano's audio tokenizer and codes that it spoke, for two voices `[1, K, F]`."""
    tts = HiggsAudio.from_pretrained("nano", device="cpu")
    said = [tts.generate("The sun rises in the east and sets in the west.", voice, seed=1) for voice in ("joe", "ava")]
    return tts.codec, [torch.from_numpy(one.codes)[None] for one in said]


def test_nano_streamed_is_nano_to_a_ten_thousandth(spoken):
    """In pieces of one frame; what rounding does to a pitch moves its pulses, most where they are many."""
    tokenizer, said = spoken
    for codes in said:
        whole = tokenizer.decode(codes).audio_values[0, 0]
        stream = torch.cat(list(decode_stream(tokenizer, codes[0].split(1, dim=1))))
        assert float((stream - whole).abs().max()) < 1e-4


@pytest.mark.parametrize("missing", [(1, 0), (0, 1)])
def test_with_one_frame_of_context_less_on_either_side_the_stream_is_another(tokenizer, missing):
    if tokenizer.config.body != "dac":
        pytest.skip("its layers remember by themselves: the next test")
    tokenizer = exact(tokenizer)
    tokenizer.missing = missing
    assert stream_error(tokenizer, make_codes(90)) > 1e-7


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("place", [0, -1])
def test_a_layer_that_forgets_its_oldest_or_newest_position_makes_another_stream(vocos_tokenizer, layer, place):
    tokenizer, codes = exact(vocos_tokenizer), make_codes(60)
    whole = tokenizer.decode(codes).audio_values[0, 0]
    decoder = StreamDecoder(tokenizer)
    first = decoder.push(codes[0, :, :30])
    decoder._way.state.kept[layer][..., place] = 0
    stream = torch.cat([first, decoder.push(codes[0, :, 30:]), decoder.finish()])
    assert float((stream - whole).abs().max() / whole.abs().max()) > 1e-7


def hasty(tokenizer, codes, look_ahead):
    """A stream of single frames with a shorter look-ahead; samples after each frame."""
    decoder = StreamDecoder(tokenizer, look_ahead)
    parts = [decoder.push(codes[0, :, :0]), *(decoder.push(frame) for frame in codes[0].split(1, dim=1))]
    return torch.cat([*parts, decoder.finish()]), [len(part) for part in parts]


def test_a_shorter_look_ahead_comes_sooner_and_is_nearer_the_longer_it_is(tokenizer):
    tokenizer, codes = exact(tokenizer), make_codes(40)
    whole = tokenizer.decode(codes).audio_values[0, 0]
    most, errors = tokenizer.decoder_context[1], []
    for look_ahead in (0, most // 2, most - 1, most, most + 5):
        sound, sizes = hasty(tokenizer, codes, look_ahead)
        errors.append(float((sound - whole).norm() / whole.norm()))
        if look_ahead < most:
            assert sizes == [0] * (look_ahead + 1) + [960] * (40 - look_ahead)
    assert errors[0] > errors[1] > errors[2] > 1e-9
    assert max(errors[3:]) < (1e-12 if tokenizer.pitch_hop is None else 1e-9)
    with pytest.raises(OptionError, match="look_ahead=-1"):
        StreamDecoder(tokenizer, -1)


def test_nano_with_low_latency_is_nearly_nano(spoken):
    tokenizer, said = spoken
    for codes in said:
        whole = tokenizer.decode(codes).audio_values[0, 0]
        sound, sizes = hasty(tokenizer, codes, LOW_LATENCY_FRAMES)
        assert sizes.index(960) == LOW_LATENCY_FRAMES + 1
        assert float((sound - whole).norm() / whole.norm()) < 0.1


def test_a_listener_waits_for_seven_frames_with_vocos_and_ten_with_the_published_body():
    published, fast = HiggsAudioTokenizerConfig(), HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"})
    assert dac.decoder_context(published) == (10, 10)
    assert vocos.decoder_context(fast) == (33, 7)


def test_frames_beyond_the_context_change_no_sample(tokenizer):
    tokenizer = exact(tokenizer)
    left, right = tokenizer.decoder_context
    codes, middle = make_codes(left + right + 41, batch=2), left + 20
    first = middle - left if tokenizer.pitch_hop is None else 0  # a pitch comes from the beginning
    codes[1, :, first : middle + right + 1] = codes[0, :, first : middle + right + 1]
    sounds = tokenizer.decode(codes).audio_values[:, 0].unflatten(1, (-1, 960))  # [2, F, 960]
    torch.testing.assert_close(sounds[0, middle], sounds[1, middle], rtol=0, atol=1e-10)
    assert (sounds[0, -1] - sounds[1, -1]).abs().max() > 1e-3


# Batches and files


def test_the_codes_of_a_recording_do_not_depend_on_its_batch(tokenizer):
    sounds = make_sound(7000, batch=3)
    together = tokenizer.encode(sounds).audio_codes
    for row in range(3):
        assert torch.equal(together[row : row + 1], tokenizer.encode(sounds[row : row + 1]).audio_codes)


def test_saving_and_loading_changes_no_bit_of_weights_codes_or_samples(tokenizer, tmp_path):
    """The STFT windows of `vocos` are in no file: loading builds the model on the meta device, without them."""
    tokenizer.save_pretrained(tmp_path)
    loaded, info = HiggsAudioTokenizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [path.suffix for path in tmp_path.glob("model*")] == [".safetensors"]
    ours, theirs = tokenizer.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    sound, codes = make_sound(5000), make_codes(12)
    assert torch.equal(tokenizer.encode(sound).audio_codes, loaded.encode(sound).audio_codes)
    assert torch.equal(tokenizer.decode(codes).audio_values, loaded.decode(codes).audio_values)
    assert loaded.config.acoustic == tokenizer.config.acoustic
    assert not loaded.training


def test_a_new_tokenizer_has_finite_weights_and_waits_for_its_codebooks(tokenizer):
    new = HiggsAudioTokenizer(tokenizer.config)
    assert all(bool(value.isfinite().all()) for value in new.state_dict().values())
    assert all(float(layer.codebook.inited) == 0 for layer in new.quantizer.layers)
    assert not any(isinstance(module, nn.Dropout) and module.p for module in new.semantic_model.modules())


# The border


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


def test_codes_of_any_integer_type_are_decoded(tokenizer):
    codes = make_codes(3)
    whole = tokenizer.decode(codes).audio_values
    assert torch.equal(tokenizer.decode(codes.int()).audio_values, whole)
    assert torch.equal(tokenizer.decode(codes.to(torch.int16)).audio_values, whole)


def test_an_unknown_body_or_field_of_a_body_names_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'vocos'"):
        HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocoz"})
    with pytest.raises(OptionError, match="did you mean 'hidden_size'"):
        HiggsAudioTokenizerConfig(acoustic_model_config={"hiden_size": 8})
