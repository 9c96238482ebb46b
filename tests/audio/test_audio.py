"""Tests of waveforms and audio files: conversion to mono float32, errors, encoding, atomic writing."""

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from higgs_audio.audio.files import FORMATS, encode, pcm16, read, write
from higgs_audio.audio.waveform import Waveform, from_array, resample
from higgs_audio.errors import AudioError, OptionError

RATE = 24000


def tone(seconds=0.5, sample_rate=RATE, hertz=440.0, level=0.5):
    times = np.arange(int(seconds * sample_rate)) / sample_rate
    return Waveform((level * np.sin(2 * np.pi * hertz * times)).astype(np.float32), sample_rate)


def peak_hertz(waveform):
    spectrum = np.abs(np.fft.rfft(waveform.samples * np.hanning(len(waveform))))
    return np.argmax(spectrum) * waveform.sample_rate / len(waveform)


# Waveform and arrays.


def test_a_waveform_has_a_duration_is_immutable_and_is_compared_by_identity():
    waveform = tone(0.25)
    assert waveform.seconds == 0.25
    assert len(waveform) == 6000
    assert waveform != tone(0.25)
    assert len({waveform, waveform}) == 1
    with pytest.raises(AttributeError):
        waveform.sample_rate = 8000


@pytest.mark.parametrize(
    "samples", [[0.0], np.zeros(4), np.zeros((2, 4), dtype=np.float32), np.zeros(4, dtype=np.int16)]
)
def test_a_waveform_accepts_only_mono_float32(samples):
    with pytest.raises(AudioError, match="from_array"):
        Waveform(samples, RATE)


@pytest.mark.parametrize("sample_rate", [0, -1, 999, 192001, 24000.0, True, None, "24000"])
def test_an_invalid_sample_rate_is_rejected(sample_rate):
    with pytest.raises(OptionError, match="sample_rate"):
        Waveform(np.zeros(4, dtype=np.float32), sample_rate)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0.5, -0.25]), [0.5, -0.25]),
        (np.array([0.5, -0.25], dtype=np.float16), [0.5, -0.25]),
        ([0.5, -0.25], [0.5, -0.25]),
        (np.array([16384, -32768], dtype=np.int16), [0.5, -1.0]),
        (np.array([2**30, -(2**31)], dtype=np.int32), [0.5, -1.0]),
        (np.array([192, 128, 0], dtype=np.uint8), [0.5, 0.0, -1.0]),
    ],
)
def test_every_sample_type_is_converted_to_the_same_scale(samples, expected):
    waveform = from_array(samples, RATE)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.tolist() == expected


@pytest.mark.parametrize("layout", [(5, 2), (2, 5), (1, 5), (5, 1), (2, 2)])
def test_channels_are_averaged_in_either_layout(layout):
    left, right = np.linspace(0, 0.8, max(layout)), np.linspace(0.4, 0, max(layout))
    stereo = np.stack([left, right][: min(layout)], axis=1)  # [S, C]
    waveform = from_array(stereo if stereo.shape == layout else stereo.T, RATE)
    assert np.allclose(waveform.samples, stereo.mean(axis=1))


def test_from_array_copies_the_samples():
    buffer = np.zeros(4, dtype=np.float32)
    waveform = from_array(buffer, RATE)
    buffer[:] = 1
    assert waveform.samples.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "no samples"),
        (np.zeros((0, 2)), "no samples"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([[0.0, np.inf], [0.0, -np.inf]]), "NaN"),
        (np.array(0.5), r"\[S\]"),
        (np.zeros((1, 1, 8)), r"\[S\]"),
        (np.zeros((64, 64)), "up to 32"),
        (np.zeros(4, dtype=np.int64), "int64"),
        (np.zeros(4, dtype=bool), "bool"),
        (np.zeros(4, dtype=complex), "complex"),
        ([[0.0], [0.0, 1.0]], "array"),
        (["a"], "allowed: floats"),
        (np.array([0.0, 32767.0]), "divide"),
    ],
)
def test_an_array_that_is_not_audio_is_rejected(samples, message):
    with pytest.raises(AudioError, match=message):
        from_array(samples, RATE)


# Reading.


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_subtype_of_wav_is_read(tmp_path, subtype):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone().samples, RATE, subtype=subtype)
    waveform = read(path)
    assert waveform.sample_rate == RATE
    assert waveform.samples.dtype == np.float32
    assert np.abs(waveform.samples - tone().samples).max() < 0.02


def test_stereo_is_averaged_and_resampled(tmp_path):
    path = tmp_path / "stereo.wav"
    left = tone(1.0, 8000).samples
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 8000)
    waveform = read(path, RATE)
    assert waveform.sample_rate == RATE
    assert len(waveform) == RATE
    assert abs(peak_hertz(waveform) - 440) < 2
    assert abs(np.abs(waveform.samples).max() - 0.25) < 0.02


def test_paths_strings_bytes_and_open_files_give_the_same_samples(tmp_path):
    path = tmp_path / "tone.flac"
    write(tone(), path)
    expected = read(path).samples
    with open(path, "rb") as file:
        assert np.array_equal(read(file).samples, expected)
    for source in (str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes())):
        assert np.array_equal(read(source).samples, expected)


def test_a_file_without_seek_is_read():
    data = encode(tone())
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, data), os.close(writer)))
    thread.start()
    with os.fdopen(reader, "rb") as file:
        waveform = read(file)
    thread.join()
    assert len(waveform) == len(tone())


def test_long_audio_is_accepted_unless_the_caller_sets_a_limit(tmp_path):
    path = tmp_path / "long.wav"
    write(Waveform(np.zeros(8000 * 300, dtype=np.float32), 8000), path)
    assert read(path).seconds == 300
    assert read(path, max_seconds=300).seconds == 300
    with pytest.raises(AudioError, match=r"longer than 299\.5 seconds"):
        read(path, max_seconds=299.5)


def damaged_flac():
    data = bytearray(encode(Waveform(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE), "flac"))
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"RIFF", "cannot be read as audio"),
        (b"<html>not found</html>" * 50, "cannot be read as audio"),
        (encode(tone())[:44], "no samples"),
        (encode(tone(), "flac")[:60], "flac|samples|sound"),
        (damaged_flac(), "cannot be read as audio"),
    ],
)
def test_a_broken_file_is_rejected_by_name(tmp_path, content, message):
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        read(path)
    assert "broken.wav" in str(caught.value)
    with pytest.raises(AudioError, match=message):
        read(content)


def test_a_file_with_nan_is_rejected_by_name(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav.*NaN"):
        read(path)


def test_missing_files_folders_pipes_and_invalid_names_are_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "noise.raw").write_bytes(
        bytes(1000)
    )  # without a header, soundfile needs the sample rate as an argument
    for name, message in {
        "missing.wav": "does not exist",
        "": "not a file",
        "pipe.wav": "not a file",
        "notes.txt": "cannot be read as audio",
        "noise.raw": "cannot be read as audio",
        "a\0b": "cannot be opened|does not exist",
        "x" * 5000: "cannot be opened",
    }.items():
        with pytest.raises(AudioError, match=message):
            read(f"{tmp_path}/{name}")


@pytest.mark.parametrize("source", [None, 5, io.StringIO("text"), [0.0, 1.0]])
def test_a_source_of_another_type_is_rejected(source):
    with pytest.raises(AudioError, match="give a path, bytes or a file"):
        read(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_read_permission_is_rejected(tmp_path):
    path = tmp_path / "secret.wav"
    write(tone(), path)
    path.chmod(0)
    with pytest.raises(AudioError, match=r"secret\.wav"):
        read(path)


# Resampling.


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100, 48000])
def test_resampling_keeps_pitch_level_and_duration(sample_rate):
    waveform = resample(tone(1.0, sample_rate), RATE)
    assert abs(waveform.seconds - 1.0) < 1e-3
    assert abs(peak_hertz(waveform) - 440) < 2
    assert abs(np.abs(waveform.samples[2400:-2400]).max() - 0.5) < 0.01


def test_downsampling_removes_frequencies_above_nyquist():
    high = tone(0.5, 48000, hertz=15000)
    assert np.abs(resample(high, 16000).samples[800:-800]).max() < 1e-3


def test_the_same_rate_keeps_the_array_and_a_single_sample_is_never_dropped():
    waveform = tone()
    assert resample(waveform, RATE).samples is waveform.samples
    assert len(resample(Waveform(np.ones(1, dtype=np.float32), 48000), 8000)) == 1
    with pytest.raises(OptionError):
        resample(waveform, 0)


# Writing.


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_16_bit_audio_is_preserved_bit_for_bit(tmp_path, format):
    levels = np.arange(-32768, 32768, dtype=np.int16)
    waveform = from_array(levels, RATE)
    path = tmp_path / f"levels.{format}"
    write(waveform, path)
    assert np.array_equal(read(path).samples, waveform.samples)
    assert pcm16(waveform) == levels.astype("<i2").tobytes()


@pytest.mark.parametrize("format", ["mp3", "ogg", "opus"])
@pytest.mark.parametrize("sample_rate", [16000, 24000, 44100])
def test_lossy_formats_keep_pitch_level_and_duration(tmp_path, format, sample_rate):
    path = tmp_path / f"tone.{format}"
    write(tone(1.0, sample_rate), path)
    waveform = read(path, sample_rate)
    assert abs(waveform.seconds - 1.0) < 0.1
    assert abs(peak_hertz(waveform) - 440) < 3
    assert abs(np.sqrt((waveform.samples**2).mean()) - 0.5 / 2**0.5) < 0.05


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sample_rate", [1000, 11025, 192000])
def test_every_format_supports_every_sample_rate(format, sample_rate):
    assert encode(tone(0.05, sample_rate), format)


def test_minutes_of_vorbis_are_written():
    """One long write would overflow the stack of libvorbis and crash the process; `encode` writes in blocks."""
    assert read(encode(Waveform(np.zeros(RATE * 300, dtype=np.float32), RATE), "ogg")).seconds == 300


def test_pcm_is_the_data_of_the_wav_file():
    assert encode(tone(), "pcm") == encode(tone(), "WAV")[44:] == pcm16(tone())


def test_samples_above_full_scale_are_clipped():
    loud = Waveform(np.array([1.5, 1.0, -1.0, -1.5], dtype=np.float32), RATE)
    assert np.frombuffer(pcm16(loud), "<i2").tolist() == [32767, 32767, -32768, -32768]


@pytest.mark.parametrize("format", FORMATS)
def test_empty_and_nan_waveforms_cannot_be_encoded(format):
    with pytest.raises(AudioError, match="no samples"):
        encode(Waveform(np.zeros(0, dtype=np.float32), RATE), format)
    with pytest.raises(AudioError, match="NaN"):
        encode(Waveform(np.full(4, np.nan, dtype=np.float32), RATE), format)


def test_an_unknown_format_is_rejected_with_the_nearest_name(tmp_path):
    with pytest.raises(OptionError, match="did you mean 'flac'"):
        write(tone(), tmp_path / "tone.flacc")
    with pytest.raises(OptionError, match="allowed: flac, mp3, ogg, opus, pcm, wav"):
        write(tone(), tmp_path / "tone")
    assert list(tmp_path.iterdir()) == []


def test_the_format_argument_overrides_the_suffix(tmp_path):
    write(tone(), tmp_path / "tone.bin", format="flac")
    assert (tmp_path / "tone.bin").read_bytes().startswith(b"fLaC")


def test_writing_replaces_a_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "tone.wav"
    for seconds in (0.5, 0.25):
        write(tone(seconds), path)
        assert read(path).seconds == seconds
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_keeps_the_existing_file(tmp_path):
    path = tmp_path / "tone.wav"
    write(tone(), path)
    before = path.read_bytes()
    with pytest.raises(AudioError):
        write(Waveform(np.full(4, np.inf, dtype=np.float32), RATE), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_rejected_and_no_file_is_left(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    for target in ("folder.wav", "missing/tone.wav", "file/tone.wav", "a\0b.wav", "x" * 300 + ".wav"):
        with pytest.raises(AudioError, match="cannot be written"):
            write(tone(), tmp_path / target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.wav"]


def test_reading_audio_does_not_import_torch():
    code = "import sys, higgs_audio.audio; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_impossible_sample_rate_is_rejected_before_the_samples_are_decoded(tmp_path):
    """4.5 MB of FLAC at 655,350 Hz once took 1.6 GB before they were refused."""
    soundfile.write(tmp_path / "fast.flac", np.zeros(30_000_000, np.int16), 655_350)
    code = f"""
import resource
from higgs_audio.audio import read
from higgs_audio.errors import AudioError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read({str(tmp_path / "fast.flac")!r})
except AudioError as error:
    assert "655350 samples per second" in str(error), error
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 60_000, f"{grown} KiB; the samples alone are 120,000"
