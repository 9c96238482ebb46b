"""Log-mel features of a recording in windows of 30 seconds: the input of the audio tower."""

from functools import lru_cache

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from higgs_audio.audio.waveform import Waveform, resample

SAMPLE_RATE = 16000


def mel_windows(waveform: Waveform, num_mel_bins: int = 128, window_seconds: int = 30) -> list[tuple[Tensor, int]]:
    """Returns, for each window of a recording at any rate, its features and the number of frames before the padding.

    Features are `[num_mel_bins, M]`. A frame is 10 ms, so M is 100 * window_seconds. The last window is padded with
    silence, as in Whisper.
    """
    samples = resample(waveform, SAMPLE_RATE).samples  # [S]
    size = window_seconds * SAMPLE_RATE
    windows = [samples[start : start + size] for start in range(0, len(samples), size)]
    extracted = _extractor(num_mel_bins, window_seconds)(
        windows, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt"
    )
    counts: list[int] = extracted["attention_mask"].sum(1).tolist()
    return list(zip(torch.unbind(extracted["input_features"]), counts, strict=True))


@lru_cache
def _extractor(num_mel_bins: int, window_seconds: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=num_mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=window_seconds)
