"""Speech quality without a reference recording: opinion scores predicted by two models."""

from dataclasses import dataclass

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.listen.distill_mos import distill_mos
from higgs_audio.listen.dnsmos import SAMPLE_RATE, dnsmos


@dataclass(frozen=True)
class Quality:
    """Predicted mean opinion scores, 1 (bad) to 5 (excellent).

    `distill_mos` is the overall quality by DistillMOS; `dnsmos_sig`, `dnsmos_bak` and `dnsmos_ovrl` are the quality of
    the speech, the absence of background noise, and the overall quality, by DNSMOS P.835.
    """

    distill_mos: float
    dnsmos_ovrl: float
    dnsmos_sig: float
    dnsmos_bak: float


def assess(waveform: Waveform) -> Quality:
    """Predicts the quality of a recording of speech, at 16 kHz, in a fraction of a second on one core.

    Raises:
        MissingExtraError: distillmos, speechmos or onnxruntime is not installed.
    """
    samples = resample(waveform, SAMPLE_RATE).samples  # [S]
    speech, background, overall = dnsmos(samples)
    return Quality(distill_mos=distill_mos(samples), dnsmos_ovrl=overall, dnsmos_sig=speech, dnsmos_bak=background)
