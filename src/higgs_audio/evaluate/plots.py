"""Plots of mel spectrograms: several recordings, one below the other, on common scales."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import MissingExtraError, OptionError
from higgs_audio.files import replacing
from higgs_audio.listen.mel import mel_corners, mel_power

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SAMPLE_RATE = 24000
FFT_SIZE = 1024
HOP_LENGTH = 240  # 10 ms
NUM_MELS = 100
RANGE_DB = 80.0  # range of the color scale, below the maximum of all recordings
TICKS_HZ = (0, 250, 500, 1000, 2000, 4000, 8000, 12000)
WIDTH_INCHES, HEIGHT_INCHES = 10.0, 2.3  # size of the plot of one recording


def plot_mel_spectrograms(waveforms: Mapping[str, Waveform], path: str | Path) -> None:
    """Writes a PNG of the mel spectrograms of `waveforms`, titled by name, in seconds, Hz and dB, atomically.

    All recordings share one time axis and one color scale, whose 0 dB is their common maximum, so that a quieter or
    shorter recording looks quieter or shorter.

    Raises:
        OptionError: no recording, or a path that does not end in .png.
        MissingExtraError: matplotlib is not installed.
    """
    if not waveforms or Path(path).suffix.lower() != ".png":
        raise OptionError(f"{len(waveforms)} recordings to {path}: give one or more and a path ending in .png")
    spectrograms = {name: _decibels(waveform) for name, waveform in waveforms.items()}
    maximum = max(float(spectrogram.max()) for spectrogram in spectrograms.values())
    figure = _new_figure(len(spectrograms))
    axes = figure.subplots(len(spectrograms), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, spectrogram) in zip(axes, spectrograms.items(), strict=True):
        image = _plot(axis, name, spectrogram - maximum)
    axes[-1].set_xlabel("time (s)")
    axes[-1].set_xlim(0.0, max(len(spectrogram) for spectrogram in spectrograms.values()) * HOP_LENGTH / SAMPLE_RATE)
    figure.colorbar(image, ax=list(axes), label="level (dB, 0 is the loudest point)")
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png")


def _decibels(waveform: Waveform) -> NDArray[np.float32]:
    """Returns the mel spectrogram in dB, `[frames, NUM_MELS]`."""
    samples = resample(waveform, SAMPLE_RATE).samples
    power = mel_power(samples, SAMPLE_RATE, FFT_SIZE, HOP_LENGTH, NUM_MELS)
    return (10.0 * np.log10(np.maximum(power, 1e-10))).astype(np.float32)


def _plot(axis: "Axes", name: str, spectrogram: NDArray[np.float32]) -> "AxesImage":
    """Plots one spectrogram; rows are equidistant on the mel scale, so the ticks in Hz are not."""
    seconds = len(spectrogram) * HOP_LENGTH / SAMPLE_RATE
    image = axis.imshow(
        spectrogram.T, origin="lower", aspect="auto", extent=(0.0, seconds, 0, NUM_MELS), vmin=-RANGE_DB, vmax=0.0,
        cmap="magma", interpolation="nearest",
    )  # fmt: skip
    corners = mel_corners(NUM_MELS, SAMPLE_RATE / 2)
    positions = np.interp(TICKS_HZ, corners, np.arange(len(corners)) - 0.5).clip(0, NUM_MELS)
    axis.set_yticks(positions, labels=[str(tick) for tick in TICKS_HZ])
    axis.set_ylabel("frequency (Hz)")
    axis.set_title(name, loc="left", fontsize=10)
    return image


def _new_figure(num_panels: int) -> "Figure":
    """Returns a figure outside pyplot, which opens no window and does not affect the caller's figures."""
    try:
        module = import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtraError("matplotlib", "evaluate") from error
    size = (WIDTH_INCHES, 0.7 + HEIGHT_INCHES * num_panels)
    figure: Figure = module.Figure(figsize=size, layout="constrained", dpi=100)
    return figure
