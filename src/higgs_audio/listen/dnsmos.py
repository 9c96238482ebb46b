"""DNSMOS P.835: speech, background and overall quality from 1 to 5, by the ONNX model the package speechmos carries.

Source: Reddy et al. 2022, "DNSMOS P.835"; the polynomials are those published with the model.
"""

import importlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgs_audio.errors import MissingExtraError
from higgs_audio.listen.weights import package_file

SAMPLE_RATE = 16000
WINDOW_SECONDS = 9.01  # the network hears 9.01 s at a time, a second apart; shorter sound is repeated until it fills it

# Maps the raw outputs (speech, background, overall) to the scale of listeners; highest power first.
POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


def dnsmos(samples: NDArray[np.float32]) -> tuple[float, float, float]:
    """Predicted opinion scores (speech, background, overall) of `samples [S]` at 16 kHz."""
    session = _session()
    raw = [session.run(None, {"input_1": window[None]})[0][0] for window in _windows(samples)]  # windows x [3]
    scores = [np.polyval(polynomial, values) for polynomial, values in zip(POLYNOMIALS, np.transpose(raw), strict=True)]
    speech, background, overall = (float(np.mean(values)) for values in scores)
    return speech, background, overall


def _windows(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The stretches the network hears; sound is doubled until it fills one, as the reference implementation does.

    The reference rounds the end of a window in floating point and skips one that comes out a sample short; so does
    this, because scores are compared with other people's.
    """
    length = int(WINDOW_SECONDS * SAMPLE_RATE)
    sound = samples.astype(np.float32)
    while len(sound) < length:
        sound = np.concatenate([sound, sound])
    seconds = range(int(len(sound) // SAMPLE_RATE - WINDOW_SECONDS) + 1)
    windows = [sound[second * SAMPLE_RATE : int((second + WINDOW_SECONDS) * SAMPLE_RATE)] for second in seconds]
    return [window for window in windows if len(window) == length]


@lru_cache(maxsize=1)
def _session() -> Any:
    path = package_file("speechmos", "dnsmos_models", "sig_bak_ovr.onnx")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "evaluate") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a window takes milliseconds; leave the cores to the work beside it
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
