"""Tests of audio in containers that libsndfile does not read."""

from fractions import Fraction

import numpy as np
import pytest

from higgs_audio.audio import read
from higgs_audio.errors import AudioError

av = pytest.importorskip("av")

RATE = 24_000
TONE = (0.2 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)).astype(np.float32)
CODECS = {"m4a": "aac", "mp4": "aac", "webm": "libopus", "mkv": "aac", "aac": "aac", "mov": "pcm_s16le"}


def write(path, codec, samples=TONE, with_video=False):
    """Writes samples with a codec, or none if it is None, and a few pictures."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25, width=16, height=16, pix_fmt="yuv420p") if with_video else None
        rate = 48_000 if codec == "libopus" else RATE
        audio = container.add_stream(codec, rate=rate, layout="mono") if codec else None
        if video is not None:
            picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            for time in range(5):
                picture.pts, picture.time_base = time, Fraction(1, 25)
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        if audio is not None:
            resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=rate, frame_size=1024)
            frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.rate = RATE
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("kind", CODECS)
def test_the_audio_of_a_container_is_read(tmp_path, kind):
    path = write(tmp_path / f"tone.{kind}", CODECS[kind])
    for source in (path, path.read_bytes()):
        waveform = read(source, RATE)
        assert waveform.seconds == pytest.approx(2.0, abs=0.1)
        inner = waveform.samples[RATE // 2 : RATE]
        spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
        assert spectrum.argmax() * RATE / len(inner) == pytest.approx(220, abs=2)
        assert np.abs(inner).max() == pytest.approx(0.2, abs=0.05)


def test_of_a_video_the_audio_is_read(tmp_path):
    assert read(write(tmp_path / "video.mp4", "aac", with_video=True)).seconds == pytest.approx(2.0, abs=0.1)


def test_a_video_without_audio_is_an_audio_error(tmp_path):
    with pytest.raises(AudioError, match="has no audio"):
        read(write(tmp_path / "silent.mp4", None, with_video=True))


def test_longer_audio_than_allowed_is_rejected_while_it_is_decoded(tmp_path):
    path = write(tmp_path / "long.m4a", "aac", np.tile(TONE, 5))
    with pytest.raises(AudioError, match="longer than 3 seconds"):
        read(path, max_seconds=3)


@pytest.mark.parametrize("kept", [200, 3000])
def test_a_damaged_container_is_an_audio_error(tmp_path, kept):
    path = write(tmp_path / "tone.m4a", "aac")
    data = path.read_bytes()
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    with pytest.raises(AudioError):
        read(path)


def test_bytes_that_are_no_audio_are_an_audio_error():
    for data in (b"hello", bytes(1000), b"\x1aE\xdf\xa3" + bytes(100), b"ID3" + bytes(50)):
        with pytest.raises(AudioError):
            read(data)
