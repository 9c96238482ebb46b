"""Tests of the streaming decoder: its concatenated samples against decoding all codes at once."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from audio_tokenizers import make_codes
from hooks import TorchCalls
from oracle import randomize

from higgs_audio.codec import (
    HiggsAudioTokenizer,
    HiggsAudioTokenizerConfig,
    StreamDecoder,
    dac,
    decode_stream,
    push_many,
    vocos,
)
from higgs_audio.codec.vocos_stream import VocosStream
from higgs_audio.errors import CodesError, OptionError
from higgs_audio.speech.result import LOW_LATENCY_FRAMES
from higgs_audio.speech.tts import HiggsAudio


def random_chunks(codes, seed):
    """Splits codes `[1, K, F]` into chunks `[K, n]`, some of them empty."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, codes.shape[2] + 1, 9))
    return [chunk.contiguous() for chunk in torch.tensor_split(codes[0], torch.tensor(cuts), dim=1)]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_in_random_chunks_equals_the_whole(tokenizer, seed):
    codes = make_codes(75, seed=seed)
    # Random filters make the 170th harmonic as loud as the first, which requires float64; the test with nano does not.
    if tokenizer.pitch_hop is not None:
        tokenizer = copy.deepcopy(tokenizer).double()
    whole = tokenizer.decode(codes).audio_values[0, 0]
    stream = torch.cat(list(decode_stream(tokenizer, random_chunks(codes, seed))))
    assert stream.shape == whole.shape
    torch.testing.assert_close(stream, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_an_empty_stream_has_no_samples_and_a_stream_of_one_frame_is_complete(tokenizer):
    one = make_codes(1)
    if tokenizer.pitch_hop is not None:  # requires float64, as above
        tokenizer = copy.deepcopy(tokenizer).double()
    assert list(decode_stream(tokenizer, [])) == []
    assert list(decode_stream(tokenizer, [one[0, :, :0]])) == []
    (samples,) = decode_stream(tokenizer, [one[0]])
    torch.testing.assert_close(samples, tokenizer.decode(one).audio_values[0, 0])


def test_a_stream_stores_only_its_context_and_waits_only_for_the_frames_to_the_right(tokenizer):
    left, right = tokenizer.decoder_context
    decoder, num_samples, sizes = StreamDecoder(tokenizer), 0, []
    for count, frame in enumerate(make_codes(60)[0].split(1, dim=1), start=1):
        num_samples += len(decoder.push(frame))
        final = 960 * max(0, count - right)
        assert num_samples == final if tokenizer.config.body == "dac" else final <= num_samples < final + 960
        sizes.append(count_numbers(decoder.state))
    assert max(sizes) == sizes[-1] == sizes[left + right + 1]


def count_numbers(state):
    """Returns the number of elements of all tensors in the state of a stream."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, (list, tuple)):
        return sum(map(count_numbers, state))
    if dataclasses.is_dataclass(state):
        return sum(map(count_numbers, vars(state).values()))
    if isinstance(state, VocosStream):
        return count_numbers([state.context, state.sums, state.phase])
    return 0


@pytest.mark.parametrize("look_ahead", [None, 1])
def test_streams_decoded_in_one_batch_equal_each_stream_alone(tokenizer, look_ahead):
    """The streams differ in length and in the size of their chunks; one ends before another begins."""
    tokenizer = copy.deepcopy(tokenizer).double()
    lengths = [40, 7, 1, 25]
    chunks = [random_chunks(make_codes(length, seed=length), length) for length in lengths]
    expected = []
    for parts in chunks:
        decoder = StreamDecoder(tokenizer, look_ahead)
        expected.append(torch.cat([*(decoder.push(part) for part in parts[:-1]), decoder.push(parts[-1], True)]))
    decoders = [StreamDecoder(tokenizer, look_ahead) for _ in lengths]
    outputs, delays = [[] for _ in lengths], [0, 3, 12, 1]
    for step in range(30):
        active = [i for i, delay in enumerate(delays) if 0 <= step - delay < len(chunks[i])]
        if active:
            codes = [chunks[i][step - delays[i]] for i in active]
            last = [step - delays[i] == len(chunks[i]) - 1 for i in active]
            for i, samples in zip(active, push_many([decoders[i] for i in active], codes, last), strict=True):
                outputs[i].append(samples)
    for length, parts, whole in zip(lengths, outputs, expected, strict=True):
        assert len(whole) == 960 * length
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9 * float(whole.abs().max()))


@pytest.mark.parametrize("failure", ["codes", "overlap_add"])
def test_a_push_that_fails_leaves_all_streams_unchanged(tokenizer, failure):
    """It fails before the first layer, or after the last one."""
    if failure == "overlap_add" and tokenizer.config.body == "dac":
        pytest.skip("the layers of dac have no state")
    codes = [make_codes(30, seed=seed)[0] for seed in (1, 2)]
    decoders = [StreamDecoder(tokenizer) for _ in codes]
    push_many(decoders, [part[:, :12] for part in codes], [False, False])
    rest = [part[:, 12:] for part in codes]

    def overlap_add_fails(function, *_):
        if failure == "overlap_add" and function is torch.nn.functional.fold:
            raise ZeroDivisionError

    with (
        TorchCalls(overlap_add_fails),
        pytest.raises(ZeroDivisionError if failure == "overlap_add" else CodesError),
    ):
        push_many(decoders, [rest[0], rest[1] + 5000 * (failure == "codes")], [True, True])
    unharmed = [StreamDecoder(tokenizer) for _ in codes]
    push_many(unharmed, [part[:, :12] for part in codes], [False, False])
    for decoder, other, part in zip(decoders, unharmed, rest, strict=True):
        assert torch.equal(decoder.push(part, True), other.push(part, True))


def test_an_earlier_state_rewinds_a_stream(tokenizer):
    first, second = make_codes(60)[0].split([25, 35], dim=1)
    decoder = StreamDecoder(tokenizer)
    decoder.push(first)
    state = decoder.state
    expected = decoder.push(second, True)
    decoder.state = state
    assert torch.equal(decoder.push(second, True), expected)


class UnderstatedContext(HiggsAudioTokenizer):
    """An audio tokenizer that reports a smaller context than it has."""

    missing = (0, 0)

    @property
    def decoder_context(self):
        left, right = super().decoder_context
        return left - self.missing[0], right - self.missing[1]


def exact(tokenizer):
    """Returns a copy in float64 with large weights, so that the weakest influence of a frame is far above rounding
    errors."""
    tokenizer = copy.deepcopy(tokenizer).double()
    randomize(tokenizer, seed=1, gain=4)
    tokenizer.__class__ = UnderstatedContext
    return tokenizer


def stream_error(tokenizer, codes):
    """Returns the largest difference between a stream of single frames and the whole, relative to the largest
    sample."""
    whole = tokenizer.decode(codes).audio_values[0, 0]
    stream = torch.cat(list(decode_stream(tokenizer, codes[0].split(1, dim=1))))
    return float((stream - whole).abs().max() / whole.abs().max())


def test_the_context_suffices_with_large_weights(tokenizer):
    assert stream_error(exact(tokenizer), make_codes(90)) < (1e-12 if tokenizer.pitch_hop is None else 1e-9)


@pytest.fixture(scope="module")
def nano_speech():
    """Returns nano's audio tokenizer, and codes `[1, K, F]` of generated speech in two voices."""
    tts = HiggsAudio.from_pretrained("nano", device="cpu")
    speech = [
        tts.generate("The sun rises in the east and sets in the west.", voice, seed=1) for voice in ("joe", "ava")
    ]
    return tts.codec, [torch.from_numpy(part.codes)[None] for part in speech]


def test_a_stream_of_nano_equals_the_whole_to_a_ten_thousandth(nano_speech):
    """In chunks of one frame. Rounding errors of the pitch move its pulses, and accumulate over a voiced segment."""
    tokenizer, speech = nano_speech
    for codes in speech:
        whole = tokenizer.decode(codes).audio_values[0, 0]
        stream = torch.cat(list(decode_stream(tokenizer, codes[0].split(1, dim=1))))
        assert float((stream - whole).abs().max()) < 1e-4


@pytest.mark.parametrize("missing", [(1, 0), (0, 1)])
def test_one_frame_of_context_less_on_either_side_changes_the_stream(tokenizer, missing):
    if tokenizer.config.body != "dac":
        pytest.skip("its layers keep their own context: see the next test")
    tokenizer = exact(tokenizer)
    tokenizer.missing = missing
    assert stream_error(tokenizer, make_codes(90)) > 1e-7


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("column", [0, -1])
def test_every_stored_input_of_a_layer_affects_the_stream(vocos_tokenizer, layer, column):
    tokenizer, codes = exact(vocos_tokenizer), make_codes(60)
    whole = tokenizer.decode(codes).audio_values[0, 0]
    decoder = StreamDecoder(tokenizer)
    first = decoder.push(codes[0, :, :30])
    decoder.state.context[layer][..., column] = 0
    stream = torch.cat([first, decoder.push(codes[0, :, 30:]), decoder.finish()])
    assert float((stream - whole).abs().max() / whole.abs().max()) > 1e-7


def stream_with_look_ahead(tokenizer, codes, look_ahead):
    """Returns the samples of a stream of single frames, and how many samples each frame returned."""
    decoder = StreamDecoder(tokenizer, look_ahead)
    parts = [decoder.push(codes[0, :, :0]), *(decoder.push(frame) for frame in codes[0].split(1, dim=1))]
    return torch.cat([*parts, decoder.finish()]), [len(part) for part in parts]


def test_a_shorter_look_ahead_returns_samples_sooner_and_with_a_larger_error(tokenizer):
    tokenizer, codes = exact(tokenizer), make_codes(40)
    whole = tokenizer.decode(codes).audio_values[0, 0]
    full, errors = tokenizer.decoder_context[1], []
    for look_ahead in (0, full // 2, full - 1, full, full + 5):
        samples, sizes = stream_with_look_ahead(tokenizer, codes, look_ahead)
        errors.append(float((samples - whole).norm() / whole.norm()))
        if look_ahead < full:
            assert sizes == [0] * (look_ahead + 1) + [960] * (40 - look_ahead)
    assert errors[0] > errors[1] > errors[2] > 1e-9
    assert max(errors[3:]) < (1e-12 if tokenizer.pitch_hop is None else 1e-9)
    with pytest.raises(OptionError, match="look_ahead=-1"):
        StreamDecoder(tokenizer, -1)


def test_the_low_latency_error_of_nano_is_below_a_tenth(nano_speech):
    tokenizer, speech = nano_speech
    for codes in speech:
        whole = tokenizer.decode(codes).audio_values[0, 0]
        samples, sizes = stream_with_look_ahead(tokenizer, codes, LOW_LATENCY_FRAMES)
        assert sizes.index(960) == LOW_LATENCY_FRAMES + 1
        assert float((samples - whole).norm() / whole.norm()) < 0.1


def test_the_decoder_context_is_10_and_10_frames_with_dac_and_33_and_7_with_vocos():
    assert dac.decoder_context(HiggsAudioTokenizerConfig()) == (10, 10)
    assert vocos.decoder_context(HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"})) == (33, 7)


def test_frames_beyond_the_context_affect_no_sample(tokenizer):
    tokenizer = exact(tokenizer)
    left, right = tokenizer.decoder_context
    codes, middle = make_codes(left + right + 41, batch=2), left + 20
    first = middle - left if tokenizer.pitch_hop is None else 0  # the phase depends on all earlier frames
    codes[1, :, first : middle + right + 1] = codes[0, :, first : middle + right + 1]
    samples = tokenizer.decode(codes).audio_values[:, 0].unflatten(1, (-1, 960))  # [2, F, 960]
    torch.testing.assert_close(samples[0, middle], samples[1, middle], rtol=0, atol=1e-10)
    assert (samples[0, -1] - samples[1, -1]).abs().max() > 1e-3
