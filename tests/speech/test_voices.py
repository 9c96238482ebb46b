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

    soundfile.write(tmp_path / "stereo.wav", np.full((24000, 2), 0.1), 24000, subtype="DOUBLE")
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
        with pytest.raises(AudioError, match=r"118|30"):
            tts.voice(source, transcript="Hello.")


@pytest.mark.parametrize("codes", [np.full((8, 3), 1024), np.full((8, 3), -1), np.zeros((7, 3), int)])
def test_a_reference_with_invalid_codes_is_rejected(tts, codes):
    with pytest.raises(CodesError):
        tts.stream("Hello.", Voice(transcript="Hi.", codes=codes))


@pytest.mark.parametrize("voice", [5, None, b"ava", ["ava"]])
def test_a_voice_of_another_type_is_rejected(tts, voice):
    with pytest.raises((VoiceError, AudioError)):
        tts.voice(voice) if voice is not None else tts.generate("Hello.", voice=5)
