"""DistillMOS: overall speech quality from 1 to 5; 4 million parameters, with weights from the package distillmos.

The network is reimplemented because that package imports torchaudio, which does not load with every build of torch.
Source: Stahl and Gamper 2025, "Distillation and pruning for scalable self-supervised representation-based speech
quality assessment".
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from higgs_audio.listen.weights import package_file

WINDOW_SAMPLES = 122880  # 7.68 s, the input of the network
MAX_STEP = 16000  # windows start at most one second apart
FFT_SIZE = 320
HOP_LENGTH = 160
CHANNELS = (64, 64, 128, 256, 256, 256)
WIDTH = 200
NUM_POSITIONS = 384
NUM_FEATURES = 1024  # 256 channels x 4 remaining bands

# Prefixes of parameter names: published -> here.
PREFIXES = {
    "cnn.cnn.": "convolutions.",
    "transformer_pool_attn.transformer.position_encoding.pe": "positions",
    "transformer_pool_attn.transformer.transformer_encoder.": "encoder.",
    "transformer_pool_attn.transformer.linear_proj.": "project.",
    "transformer_pool_attn.transformer.norm.": "norm_features.",
    "transformer_pool_attn.norm_input.": "norm_input.",
    "transformer_pool_attn.norm_trans.": "norm_output.",
    "transformer_pool_attn.pool.linear1.": "attention.0.",
    "transformer_pool_attn.pool.linear2.": "attention.2.",
    "transformer_pool_attn.pool.linear3.": "score.",
}


def distill_mos(samples: NDArray[np.float32]) -> float:
    """Predicts the mean opinion score, 1 to 5, of `samples [S]` at 16 kHz, independent of their level.

    Raises:
        MissingExtraError: the package distillmos is not installed.
    """
    padded = torch.from_numpy(np.pad(samples, (0, max(0, WINDOW_SAMPLES - len(samples)))).astype(np.float32))
    last = len(padded) - WINDOW_SAMPLES
    starts = [int(share * last) for share in np.linspace(0.0, 1.0, -(-last // MAX_STEP) + 1)]
    windows = torch.stack([padded[start : start + WINDOW_SAMPLES] for start in starts])  # [windows, WINDOW_SAMPLES]
    with torch.inference_mode():
        return float(_network()(windows).mean())


class _Network(nn.Module):
    """Convolutions over the compressed complex spectrum, a small Transformer, and attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*_convolutions())
        self.norm_input = nn.BatchNorm1d(NUM_FEATURES)
        self.norm_features = nn.BatchNorm1d(NUM_FEATURES)
        self.project = nn.Linear(NUM_FEATURES, WIDTH)
        self.register_buffer("positions", torch.zeros(1, NUM_POSITIONS, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=8, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=7)
        self.norm_output = nn.BatchNorm1d(WIDTH)
        self.attention = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, 1))
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Returns the scores `[B]` of `windows [B, WINDOW_SAMPLES]`."""
        peak = windows.abs().amax(dim=1, keepdim=True) + 1e-8
        features = self.convolutions(_compressed_spectrum(windows / peak)).flatten(
            1, 2
        )  # [B, NUM_FEATURES, NUM_POSITIONS]
        features = self.norm_features(self.norm_input(features)).transpose(1, 2)
        hidden = self.encoder(self.project(features) + self.positions)  # [B, NUM_POSITIONS, WIDTH]
        hidden = self.norm_output(hidden.transpose(1, 2)).transpose(1, 2)
        weights = self.attention(hidden).softmax(dim=1)  # [B, NUM_POSITIONS, 1]
        score: Tensor = self.score((weights * hidden).sum(dim=1))  # [B, 1]
        return 1.0 + 4.0 * score.squeeze(-1).sigmoid()


def _convolutions() -> list[nn.Module]:
    """Returns 3 x 3 convolutions; all but the first halve the number of bands, the last also the number of frames."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(zip((2, *CHANNELS[:-1]), CHANNELS, strict=True)):
        stride = (1 if index == 0 else 2, 2 if index == len(CHANNELS) - 1 else 1)
        layers += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=(0, 1)), nn.LeakyReLU(0.1)]
    return layers


def _compressed_spectrum(windows: Tensor) -> Tensor:
    """Returns the complex spectrum with magnitudes raised to 0.3: `[B, 2, FFT_SIZE // 2 + 1, frames]`."""
    edge = (FFT_SIZE - HOP_LENGTH) // 2
    padded = nn.functional.pad(windows, (edge, edge), mode="reflect")
    window = torch.hann_window(FFT_SIZE)
    spectrum = torch.stft(padded, FFT_SIZE, HOP_LENGTH, window=window, center=False, return_complex=True)
    magnitude = spectrum.abs().clamp(min=1e-12)
    return torch.view_as_real(spectrum * magnitude**-0.7).permute(0, 3, 1, 2)


@lru_cache(maxsize=1)
def _network() -> _Network:
    path = package_file("distillmos", "weights", "distill_mos_v7.pt")
    weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
    network = _Network()
    network.load_state_dict({_rename(name): value for name, value in weights.items()})
    return network.eval()


def _rename(name: str) -> str:
    published = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[published] + name[len(published) :]
