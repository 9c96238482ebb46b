"""Residual vector quantization: K codebooks; each quantizes the residual of the codebooks before it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.codec.config import HiggsAudioTokenizerConfig


class Codebook(nn.Module):
    """V entries `[V, codebook_dim]`, updated by running averages, not by gradients.

    `embed_avg` is the decayed sum of the vectors assigned to an entry and `cluster_size` their decayed count, so
    `embed = embed_avg / cluster_size` from the first update on. Initializing `embed_avg` with means instead of sums
    would shrink the codebook.
    """

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("embed", torch.zeros(size, width))
        self.register_buffer("embed_avg", torch.zeros(size, width))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Returns indices `[...]` of the entries nearest to `vectors [..., width]`, the lowest index of a tie."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        distance = self.embed.pow(2).sum(1) - 2 * flat @ self.embed.t()  # [N, V], without the vectors' squared norms
        return distance.argmin(1).view(vectors.shape[:-1])


class VectorQuantizer(nn.Module):
    """One codebook with its projections: `[..., D]` to codes `[...]` and back."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        self.codebook = Codebook(config.codebook_size, config.codebook_dim)
        self.project_in = nn.Linear(config.hidden_size, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, config.hidden_size)

    def encode(self, x: Tensor) -> Tensor:
        return self.codebook.nearest(self.project_in(x))

    def decode(self, codes: Tensor) -> Tensor:
        out: Tensor = self.project_out(F.embedding(codes, self.codebook.embed))
        return out


@dataclass
class Quantized:
    """The result of `ResidualVectorQuantizer.forward`, for training."""

    latent: Tensor  # [B, F, D], with straight-through gradients
    first: Tensor  # [B, F, D], quantized by the first codebook alone, with straight-through gradients
    codes: Tensor  # [K, B, F]
    projected: list[Tensor]  # K of [B, F, codebook_dim], the input of each codebook
    commitment: Tensor  # scalar: energy of the final residual, mean over frames
    residual_energy: Tensor  # [K], after each codebook, relative to the input, no gradient


class ResidualVectorQuantizer(nn.Module):
    """K vector quantizers in sequence."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(VectorQuantizer(config) for _ in range(config.num_codebooks))

    def encode(self, latent: Tensor) -> Tensor:
        """Quantizes `latent [B, F, D]` to codes `[B, K, F]`."""
        residual, codes = latent, []
        for quantizer in self.layers:
            codes.append(quantizer.encode(residual))
            residual = residual - quantizer.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the latent `[B, F, D]` of codes `[B, k, F]` of the first k <= K codebooks."""
        latent = self.layers[0].decode(codes[:, 0])
        for quantizer, row in zip(self.layers[1:], codes.unbind(1)[1:], strict=False):
            latent = latent + quantizer.decode(row)
        return latent

    def forward(self, latent: Tensor, depth: Tensor) -> Quantized:
        """The training pass: quantizes `latent [B, F, D]`, sample b with the first `depth[b]` codebooks.

        Gradients are straight-through: the input receives those of the quantized latent. Codebooks are updated by
        running averages and projections are not trained (see `train_codec/codebook.py`), so they need no gradient.
        """
        with torch.no_grad():
            residual, total, first = latent, torch.zeros_like(latent), torch.zeros_like(latent)
            codes, projected, energies = [], [], []
            energy = latent.pow(2).mean()
            for number, quantizer in enumerate(self.layers):
                projected.append(quantizer.project_in(residual))
                codes.append(quantizer.codebook.nearest(projected[-1]))
                out = quantizer.decode(codes[-1])  # [B, F, D]
                residual = residual - out
                energies.append(residual.pow(2).mean() / energy)
                total = total + torch.where((depth > number).view(-1, 1, 1), out, 0.0)
                first = out if number == 0 else first
        commitment = (latent - (latent.detach() - residual)).pow(2).sum(-1).mean()
        straight = latent - latent.detach()
        return Quantized(
            total + straight, first + straight, torch.stack(codes), projected, commitment, torch.stack(energies)
        )

    @property
    def layers(self) -> list[VectorQuantizer]:
        """The quantizers in order."""
        return [q for q in self.quantizers if isinstance(q, VectorQuantizer)]
