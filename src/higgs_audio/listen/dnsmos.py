"""DNSMOS P.835: speech, background and overall quality from 1 to 5, with the ONNX model of the package speechmos.

Source: Reddy et al. 2022, "DNSMOS P.835"; the polynomials were published with the model.
"""

import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from higgs_audio.errors import MissingExtraError
from higgs_audio.listen.weights import package_file

SAMPLE_RATE = 16000
WINDOW_SECONDS = 9.01  # input of the network; windows start one second apart

# Map the raw outputs (speech, background, overall) to the scale of human ratings; highest power first.
POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class _Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that this module uses."""

    def run(self, output_names: None, inputs: Mapping[str, NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]: ...


def dnsmos(samples: NDArray[np.float32]) -> tuple[float, float, float]:
    """Predicts the opinion scores (speech, background, overall) of `samples [S]` at 16 kHz.

    Raises:
        MissingExtraError: speechmos or onnxruntime is not installed.
    """
    session = _session()
    raw = [session.run(None, {"input_1": window[None]})[0][0] for window in _windows(samples)]  # windows x [3]
    scores = [np.polyval(polynomial, values) for polynomial, values in zip(POLYNOMIALS, np.transpose(raw), strict=True)]
    speech, background, overall = (float(np.mean(values)) for values in scores)
    return speech, background, overall


def _windows(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Returns the windows of the network; samples shorter than a window are repeated, doubling until they fill it.

    The reference implementation does the same, so scores are comparable. It computes the end of a window in floating
    point and skips a window that is one sample short because of rounding.
    """
    length = int(WINDOW_SECONDS * SAMPLE_RATE)
    samples = samples.astype(np.float32)
    while len(samples) < length:
        samples = np.concatenate([samples, samples])
    seconds = range(int(len(samples) // SAMPLE_RATE - WINDOW_SECONDS) + 1)
    windows = [samples[second * SAMPLE_RATE : int((second + WINDOW_SECONDS) * SAMPLE_RATE)] for second in seconds]
    return [window for window in windows if len(window) == length]


@lru_cache(maxsize=1)
def _session() -> _Session:
    path = package_file("speechmos", "dnsmos_models", "sig_bak_ovr.onnx")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "evaluate") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a window takes milliseconds; leaves the cores to other work
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return cast(_Session, session)
