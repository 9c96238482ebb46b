"""24 kHz to 16 kHz inside the audio tokenizer: a windowed-sinc polyphase filter, differentiable and on any device.

The published tokenizer was trained with this filter (sinc interpolation, Hann window, width 6, roll-off 0.99); it is
implemented from its closed form. soxr resamples files and other rates, in `higgs_audio.audio`.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

LOWPASS_WIDTH = 6  # zero crossings on each side
ROLLOFF = 0.99


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resamples `waveform [..., S]` to `[..., ceil(S * target_rate / source_rate)]`, in fp32.

    >>> resample(torch.zeros(2, 24000), 24000, 16000).shape
    torch.Size([2, 16000])
    """
    divisor = math.gcd(source_rate, target_rate)
    old, new = source_rate // divisor, target_rate // divisor
    if old == new:
        return waveform
    kernel = _kernel(old, new).to(waveform.device)  # [new, 1, taps]
    width = (kernel.shape[-1] - old) // 2
    flat = waveform.reshape(-1, 1, waveform.shape[-1]).float()
    phases = F.conv1d(F.pad(flat, (width, width + old)), kernel, stride=old)  # [N, new, blocks]
    samples = phases.transpose(1, 2).reshape(flat.shape[0], -1)
    length = -(-new * waveform.shape[-1] // old)
    return samples[:, :length].reshape(*waveform.shape[:-1], length)


@lru_cache
@torch.inference_mode(False)  # the cached tensor must be usable in training, which inference tensors are not
def _kernel(old: int, new: int) -> Tensor:
    """Returns one windowed sinc per output phase, `[new, 1, 2 * width + old]`."""
    base = min(old, new) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * old / base)
    taps = torch.arange(-width, width + old, dtype=torch.float64) / old
    phase = torch.arange(new, dtype=torch.float64) / new
    t = ((taps[None] - phase[:, None]) * base).clamp(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = torch.cos(t * math.pi / LOWPASS_WIDTH / 2) ** 2
    return (torch.sinc(t) * window * base / old)[:, None].float()
