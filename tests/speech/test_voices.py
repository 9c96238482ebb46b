"""Tests of voices of HiggsAudio: named voices, recordings, and invalid voices."""

from pathlib import Path

import numpy as np
import pytest
from hooks import counted_calls
from noise import make_noise

from higgs_audio import audio
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, CodesError, TextError, VoiceError
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.speech.voices import read_voices


def test_the_first_named_voice_is_the_default(tts):
    assert tts.voices == ("ava", "joe")
    assert tts.voice("joe").profile == "Joe"
    default, ava, joe = (tts.generate("Hello there.", voice, seed=1).codes for voice in (None, "ava", tts.voice("joe")))
    assert np.array_equal(default, ava)
    assert not np.array_equal(default, joe)


def test_a_recording_with_its_transcript_is_a_voice(tts, recording):
    voice = tts.voice(recording, transcript=" Hello. ")
    assert voice.codes.shape == (8, 25)
    assert voice.transcript == "Hello."
    from_bytes = tts.voice(recording.read_bytes(), transcript="Hello.")
    assert np.array_equal(voice.codes, from_bytes.codes)
    cloned = tts.generate("Hello there.", voice, seed=1)
    assert not np.array_equal(cloned.codes, tts.generate("Hello there.", seed=1).codes)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_recordings_of_any_rate_are_resampled(tts, rate):
    assert tts.voice(make_noise(1.0, rate), "Hello.").codes.shape == (8, 25)


def test_stereo_and_float64_recordings_are_read(tts, tmp_path):
    import soundfile

    samples = make_noise(1.0).samples.astype(np.float64)
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], axis=1), 24000, subtype="DOUBLE")
    assert tts.voice(tmp_path / "stereo.wav", "Hello.").codes.shape == (8, 25)


def test_a_recording_is_encoded_once(tts, recording):
    tts = HiggsAudio(tts.model, tts.processor)  # with an empty cache
    with counted_calls(tts.codec.acoustic_encoder) as calls:
        first, again = tts.voice(recording, "Noise."), tts.voice(recording.read_bytes(), "Other words.")
        assert np.array_equal(first.codes, again.codes)
        assert (first.transcript, again.transcript, len(calls)) == ("Noise.", "Other words.", 1)
        first.codes[:] = 0  # a copy
        assert not np.array_equal(tts.voice(recording, "Noise.").codes, first.codes)
        assert len(calls) == 1
        tts.voice(Waveform(audio.read(recording).samples * 0.5, 24000), "Noise.")
        assert len(calls) == 2


def test_an_unknown_voice_suggests_the_nearest_name(tts):
    for use in (tts.voice, lambda name: tts.generate("Hello.", name)):
        with pytest.raises(VoiceError, match="did you mean 'ava'"):
            use("avaa")
    with pytest.raises(VoiceError, match="transcript"):
        tts.generate("Hello.", Path("me.wav"))


def test_a_recording_needs_a_transcript_and_a_name_takes_none(tts, recording):
    with pytest.raises(VoiceError, match="needs its transcript"):
        tts.voice(recording)
    with pytest.raises(VoiceError, match="takes no transcript"):
        tts.voice("ava", transcript="Hello.")
    with pytest.raises(TextError, match="letter or digit"):
        tts.voice(recording, transcript="...")


@pytest.mark.parametrize("source", ["nowhere.wav", Path("nowhere"), b"", b"not a sound"])
def test_an_unreadable_recording_is_rejected(tts, source):
    with pytest.raises(AudioError):
        tts.voice(source, transcript="Hello.")


@pytest.mark.parametrize("seconds", [118 / 24000, 30.5, 200.0])
def test_a_recording_that_is_too_short_or_too_long_is_rejected(tts, tmp_path, seconds):
    given = make_noise(seconds)
    audio.write(given, tmp_path / "x.wav")
    for source in (given, tmp_path / "x.wav"):
        with pytest.raises(AudioError, match=r"118|30|too short for its transcript"):
            tts.voice(source, transcript="Hello.")


@pytest.mark.parametrize("codes", [np.full((8, 3), 1024), np.full((8, 3), -1), np.zeros((7, 3), int)])
def test_a_reference_with_invalid_codes_is_rejected(tts, codes):
    with pytest.raises(CodesError):
        tts.stream("Hello.", Voice(transcript="Hi.", codes=codes))


@pytest.mark.parametrize("voice", [5, None, b"ava", ["ava"]])
def test_a_voice_of_another_type_is_rejected(tts, voice):
    with pytest.raises((VoiceError, AudioError)):
        tts.voice(voice) if voice is not None else tts.generate("Hello.", voice=5)


# Recordings that cannot serve as a reference.

SENTENCE = "The sun rises in the east."


def voiced(seconds=2.0, level=0.1):
    """Returns a signal with the spectrum and the syllables of a voice."""
    times = np.arange(round(24_000 * seconds)) / 24_000
    tone = sum(np.sin(2 * np.pi * 120 * k * times) / k for k in range(1, 20))
    return (level * tone * (1 + np.sin(2 * np.pi * 4 * times)) / 2).astype(np.float32)


def test_a_usable_recording_is_accepted_without_a_warning(tts, recwarn):
    assert tts.voice(Waveform(voiced(), 24_000), SENTENCE).codes is not None
    assert [str(warning.message) for warning in recwarn if "recording" in str(warning.message)] == []


@pytest.mark.parametrize(
    ("samples", "transcript", "message"),
    [
        (np.zeros(48_000, np.float32), SENTENCE, "the recording is silent"),
        (1e-5 * voiced(), SENTENCE, "the recording is silent"),
        (np.clip(40 * voiced(), -1, 1), SENTENCE, "of the recording is clipped"),
        (0.3 * np.clip(40 * voiced(), -1, 1), SENTENCE, "of the recording is clipped"),
        (voiced(0.3), f"{SENTENCE} It sets in the west.", "too short for its transcript"),
    ],
    ids=["silent", "nearly silent", "clipped", "clipped and attenuated", "transcript of more than is said"],
)
def test_a_recording_that_clones_nobody_is_refused_with_the_reason(tts, samples, transcript, message):
    with pytest.raises(AudioError, match=message):
        tts.voice(Waveform(samples, 24_000), transcript)


@pytest.mark.parametrize(
    ("samples", "message"),
    [(voiced(0.9), "3 to 15 s clone a voice better"), (voiced(20.0), "give all of its words")],
    ids=["short", "transcript of less than is said"],
)
def test_a_poor_recording_is_warned_about(tts, samples, message):
    with pytest.warns(UserWarning, match=message):
        tts.voice(Waveform(samples, 24_000), SENTENCE)


def test_channels_of_opposite_phase_are_heard_as_one_of_them(tmp_path):
    voice = voiced()
    import soundfile

    soundfile.write(tmp_path / "opposite.wav", np.stack([voice, -voice], axis=1), 24_000, subtype="FLOAT")
    soundfile.write(tmp_path / "equal.wav", np.stack([voice, voice], axis=1), 24_000, subtype="FLOAT")
    for name in ("opposite", "equal"):
        np.testing.assert_allclose(audio.read(tmp_path / f"{name}.wav").samples, voice, atol=1e-6)


@pytest.mark.parametrize("name", ["x" * 400, "~nosuchuser/x.wav", "~x.wav", "a/" * 2500 + "x.wav", "nul\0.wav"])
def test_a_voice_whose_name_is_no_path_is_an_error_of_the_package(tts, name):
    with pytest.raises((VoiceError, AudioError)):
        tts.voice(name, SENTENCE)
    with pytest.raises(VoiceError):
        tts.generate("Hello.", name)


def test_a_saved_processor_keeps_the_voices_of_its_checkpoint(tiny_checkpoint, tmp_path):
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")
    tts.model.save_pretrained(tmp_path)
    tts.processor.save_pretrained(tmp_path)
    again = HiggsAudio.from_pretrained(tmp_path, device="cpu")
    assert again.voices == tts.voices == ("ava", "joe")
    assert read_voices(tmp_path) == read_voices(tiny_checkpoint)
    assert np.array_equal(again.generate("Hello.", seed=1).codes, tts.generate("Hello.", seed=1).codes)
