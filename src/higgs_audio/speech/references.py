"""Whether a recording can serve as the reference of a voice: level, clipping, duration, transcript."""

import warnings

import numpy as np
from numpy.typing import NDArray

from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError
from higgs_audio.text.pace import count_phones

# Measured on 378 clips of seventy synthetic voices and a human one: at most 0.6 % of the samples are in flat tops, and
# a phone takes 0.057 to 0.17 s. Amplified by 12 dB and clipped, 1 to 2 % are in flat tops, by 24 dB 14 to 38 %.
SILENT_RMS = 1e-3  # -60 dB
CLIPPED_SHARE, SOME_CLIPPED_SHARE = 0.10, 0.01  # of the samples in flat tops: refused, and warned about
SHORT_SECONDS = 1.0
SHORTEST_PHONE, LONGEST_PHONE = 0.03, 0.3  # seconds per phone: less cannot be spoken, more is mostly silence
TOP = 0.98  # of the largest magnitude, from which a sample may belong to a flat top
FLAT = 3  # samples of a flat top


def check_reference(reference: Waveform, transcript: str, phonemes: bool) -> None:
    """Warns about a reference from which a voice will be cloned badly.

    Args:
        reference: the recording.
        transcript: its words.
        phonemes: as in `count_phones`.

    Raises:
        AudioError: a silent or heavily clipped recording, or one that is too short for its transcript.
        TextError: a transcript without anything speakable.
    """
    rms = float(np.sqrt(np.square(reference.samples, dtype=np.float64).mean()))
    if rms < SILENT_RMS:
        raise AudioError(f"the recording is silent (RMS {rms:.1e}); give one with RMS {SILENT_RMS:g} or more")
    clipped = clipped_share(reference.samples)
    if clipped > CLIPPED_SHARE:
        raise AudioError(f"{clipped:.0%} of the recording is clipped; record it at a lower level")
    if clipped > SOME_CLIPPED_SHARE:
        warnings.warn(f"{clipped:.1%} of the recording is clipped, so the voice will be rough", stacklevel=4)
    num_phones = count_phones(transcript, phonemes)
    if reference.seconds < SHORTEST_PHONE * num_phones:
        raise AudioError(
            f"the recording lasts {reference.seconds:.1f} s, too short for its transcript of {num_phones} phones; give "
            "the words that are spoken in it, and no others"
        )
    if reference.seconds > 2 + LONGEST_PHONE * num_phones:
        warnings.warn(
            f"the recording lasts {reference.seconds:.1f} s, but its transcript has only {num_phones} phones; give all "
            "of its words",
            stacklevel=4,
        )
    elif reference.seconds < SHORT_SECONDS:
        warnings.warn(f"the recording lasts {reference.seconds:.1f} s; 3 to 15 s clone a voice better", stacklevel=4)


def clipped_share(samples: NDArray[np.float32]) -> float:
    """Returns the share of samples `[S]` in flat tops: runs of `FLAT` or more near the largest magnitude."""
    magnitude = np.abs(samples)
    at_top = magnitude >= TOP * magnitude.max(initial=0.0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], at_top, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= FLAT].sum()) / max(1, len(samples))
