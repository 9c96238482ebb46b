"""A picture of several recordings: their mel spectrograms one below the other, on one scale."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import MissingExtraError, OptionError
from higgs_audio.listen.mel import mel_corners, mel_power

SAMPLE_RATE = 24000
FFT_SIZE = 1024
HOP_LENGTH = 240  # 10 ms
NUM_MELS = 100
RANGE_DB = 80.0  # shown below the loudest point of all recordings
TICKS_HZ = (0, 250, 500, 1000, 2000, 4000, 8000, 12000)
WIDTH_INCHES, HEIGHT_INCHES = 10.0, 2.3  # of one recording


def draw(waveforms: Mapping[str, Waveform], path: str | Path) -> None:
    """Writes a PNG of the mel spectrograms of `waveforms`, titled by their names, in seconds, Hz and dB.

    All share one time axis and one colour scale (0 dB is the loudest point of them all), so a quieter or shorter
    recording looks quieter or shorter. The file appears whole or not at all.

    Raises:
        OptionError: no recording, or a path that does not end in .png.
        MissingExtraError: matplotlib is not installed.
    """
    if not waveforms or Path(path).suffix.lower() != ".png":
        raise OptionError(f"{len(waveforms)} recordings to {path}: give one or more and a path ending in .png")
    spectra = {name: _decibels(waveform) for name, waveform in waveforms.items()}
    top = max(float(spectrum.max()) for spectrum in spectra.values())
    figure = _figure(len(spectra))
    axes = figure.subplots(len(spectra), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, spectrum) in zip(axes, spectra.items(), strict=True):
        image = _show(axis, name, spectrum - top)
    axes[-1].set_xlabel("time (s)")
    axes[-1].set_xlim(0.0, max(spectrum.shape[0] for spectrum in spectra.values()) * HOP_LENGTH / SAMPLE_RATE)
    figure.colorbar(image, ax=list(axes), label="level (dB, 0 is the loudest point)")
    _save(figure, Path(path))


def _decibels(waveform: Waveform) -> NDArray[np.float32]:
    """`[frames, NUM_MELS]` in dB."""
    samples = resample(waveform, SAMPLE_RATE).samples
    power = mel_power(samples, SAMPLE_RATE, FFT_SIZE, HOP_LENGTH, NUM_MELS)
    return (10.0 * np.log10(np.maximum(power, 1e-10))).astype(np.float32)


def _show(axis: Any, name: str, spectrum: NDArray[np.float32]) -> Any:
    """Draws one spectrogram; the rows are equal steps on the mel scale, so the ticks in Hz are not."""
    seconds = spectrum.shape[0] * HOP_LENGTH / SAMPLE_RATE
    image = axis.imshow(
        spectrum.T, origin="lower", aspect="auto", extent=(0.0, seconds, 0, NUM_MELS), vmin=-RANGE_DB, vmax=0.0,
        cmap="magma", interpolation="nearest",
    )  # fmt: skip
    corners = mel_corners(NUM_MELS, SAMPLE_RATE / 2)
    axis.set_yticks(np.interp(TICKS_HZ, corners, np.arange(len(corners)) - 0.5).clip(0, NUM_MELS), labels=TICKS_HZ)
    axis.set_ylabel("frequency (Hz)")
    axis.set_title(name, loc="left", fontsize=10)
    return image


def _figure(panels: int) -> Any:
    """A figure of its own: no window, and nothing of a caller's matplotlib is touched."""
    try:
        figure = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "evaluate") from error
    return figure(figsize=(WIDTH_INCHES, 0.7 + HEIGHT_INCHES * panels), layout="constrained", dpi=100)


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
