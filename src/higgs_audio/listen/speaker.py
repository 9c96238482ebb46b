"""Speaker embeddings by the GE2E speaker encoder, with weights from the package resemblyzer.

Two voices of the same gender often have a similarity above 0.75, so compare it with the similarity to other speakers
(`evaluate.run` reports the margin). Source: Wan et al. 2018, "Generalized end-to-end loss for speaker verification".
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.listen.mel import mel_power
from higgs_audio.listen.weights import package_file

Floats = NDArray[np.float32]

SAMPLE_RATE = 16000
WIDTH = 256  # of the embedding and of the hidden layers
NUM_MELS = 40
FFT_SIZE = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
WINDOW_FRAMES = 160  # 1.6 s, the input of the network
WINDOW_STEP = 77  # frames between windows: 1.3 windows per second
WINDOW_COVERAGE = 0.75  # minimum share of the last window that the recording covers
TARGET_DBFS = -30.0  # quieter recordings are amplified to this level
PAUSE_SAMPLES = 480  # length of a block of pause detection, 30 ms
PAUSE_DB = 40.0  # a block this far below the loudest one is a pause
PAUSE_KEPT = 3  # blocks of a pause kept on each side


def embed(waveform: Waveform) -> Floats:
    """Returns the speaker embedding of a recording: `[256]` float32, a unit vector.

    Long pauses are found by their level and shortened; the reference implementation uses a voice activity detector. On
    recordings without long pauses both agree to the last digits.

    Raises:
        MissingExtraError: the package resemblyzer, which contains the weights, is not installed.
    """
    samples = _shorten_pauses(_amplify(resample(waveform, SAMPLE_RATE).samples))
    starts = _window_starts(len(samples))
    tail = (starts[-1] + WINDOW_FRAMES) * HOP_LENGTH - len(samples)
    padded = np.pad(samples, (0, max(0, tail)))
    mels = mel_power(padded, SAMPLE_RATE, FFT_SIZE, HOP_LENGTH, NUM_MELS)  # [frames, NUM_MELS]
    windows = np.stack([mels[start : start + WINDOW_FRAMES] for start in starts])  # [windows, WINDOW_FRAMES, NUM_MELS]
    with torch.inference_mode():
        vectors = _encoder()(torch.from_numpy(windows))
    return _unit(vectors.mean(dim=0).numpy())


def embed_speaker(waveforms: Iterable[Waveform]) -> Floats:
    """Returns the embedding of a speaker: the mean of several recordings' embeddings, `[256]`, a unit vector.

    Raises:
        MissingExtraError: as for `embed`.
    """
    return _unit(np.mean([embed(waveform) for waveform in waveforms], axis=0))


def similarity(first: Floats | Waveform, second: Floats | Waveform) -> float:
    """Returns the cosine similarity, 0 to 1, of two speakers, given as embeddings `[256]` or recordings.

    Raises:
        MissingExtraError: as for `embed`.
    """
    a, b = (embed(item) if isinstance(item, Waveform) else item for item in (first, second))
    return float(np.dot(_unit(a), _unit(b)))


class _Encoder(nn.Module):
    """Three LSTM layers over mel frames, with the parameter names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(NUM_MELS, WIDTH, num_layers=3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: Tensor) -> Tensor:
        """Returns the embeddings `[B, WIDTH]` of `mels [B, WINDOW_FRAMES, NUM_MELS]`."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=-1)


@lru_cache(maxsize=1)
def _encoder() -> _Encoder:
    """Loads the encoder; the two other values in the file belong to its training loss."""
    path = package_file("resemblyzer", "pretrained.pt")
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    network = _Encoder()
    network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("similarity_")})
    return network.eval()


def _window_starts(num_samples: int) -> list[int]:
    """Returns the first frame of each window: at least one window, the last with at least WINDOW_COVERAGE."""
    num_frames = -(-(num_samples + 1) // HOP_LENGTH)
    starts = list(range(0, max(1, num_frames - WINDOW_FRAMES + WINDOW_STEP + 1), WINDOW_STEP))
    covered = (num_samples / HOP_LENGTH - starts[-1]) / WINDOW_FRAMES
    return starts[:-1] if covered < WINDOW_COVERAGE and len(starts) > 1 else starts


def _amplify(samples: Floats) -> Floats:
    """Amplifies a quiet recording to TARGET_DBFS; returns louder recordings and silence unchanged."""
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    target = 10.0 ** (TARGET_DBFS / 20.0)
    return samples * np.float32(target / level) if 1e-7 < level < target else samples


def _shorten_pauses(samples: Floats) -> Floats:
    """Drops the middle of long pauses, so that windows contain speech."""
    whole = samples[: len(samples) // PAUSE_SAMPLES * PAUSE_SAMPLES]
    if whole.size == 0:
        return samples
    blocks = whole.reshape(-1, PAUSE_SAMPLES)
    power = np.mean(np.square(blocks, dtype=np.float64), axis=1)
    voiced = power >= power.max() * 10.0 ** (-PAUSE_DB / 10.0)
    near = np.convolve(voiced, np.ones(2 * PAUSE_KEPT + 1), mode="full")[PAUSE_KEPT : PAUSE_KEPT + len(voiced)] > 0
    return blocks[near].reshape(-1)


def _unit(vector: Floats) -> Floats:
    return (vector / max(float(np.linalg.norm(vector)), 1e-8)).astype(np.float32)
