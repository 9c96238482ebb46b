"""Codebook training: k-means initialization, running averages, and replacement of dead entries."""

import torch
from torch import Tensor

from higgs_audio.codec.model import HiggsAudioTokenizer
from higgs_audio.codec.quantizer import Codebook, ResidualVectorQuantizer

EPSILON = 1e-5
DEAD_SHARE = 0.1  # of the mean usage; with an absolute count most of 1024 entries would be dead in small batches


@torch.no_grad()
def kmeans(vectors: Tensor, size: int, num_steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns means `[size, D]` and counts `[size]` of `vectors [N, D]`, N >= size.

    Empty clusters restart at random vectors.
    """
    means = vectors[torch.randperm(len(vectors), generator=generator)[:size]].clone()
    counts = vectors.new_zeros(size)
    for _ in range(num_steps):
        nearest = torch.cdist(vectors, means).argmin(1)
        counts = torch.bincount(nearest, minlength=size).float()
        sums = torch.zeros_like(means).index_add_(0, nearest, vectors)
        empty = counts == 0
        means = sums / counts.clamp(min=1)[:, None]
        means[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),), generator=generator)]
    return means, counts.clamp(min=1)


@torch.no_grad()
def init_codebooks(
    quantizer: ResidualVectorQuantizer, latents: Tensor, num_steps: int, scale: float, generator: torch.Generator
) -> None:
    """Initializes the codebooks from `latents [N, D]`, each from the residual of the previous ones.

    The projections become the principal axes of that residual: `project_in` projects onto them, `project_out` back.

    Args:
        quantizer: modified in place.
        latents: `[N, D]`.
        num_steps: number of k-means steps.
        scale: converts the counts of the k-means batch to the running counts of one training batch.
        generator: on the CPU.
    """
    residual = latents
    for layer in quantizer.layers:
        width = layer.codebook.embed.shape[1]
        mean = residual.mean(0)
        axes = torch.linalg.eigh(torch.cov((residual - mean).T))[1][:, -width:].T  # [width, D], orthonormal rows
        layer.project_in.weight.copy_(axes)
        layer.project_in.bias.copy_(-axes @ mean)
        layer.project_out.weight.copy_(axes.T)
        layer.project_out.bias.copy_(mean)
        means, counts = kmeans(layer.project_in(residual), len(layer.codebook.embed), num_steps, generator)
        book = layer.codebook
        book.embed.copy_(means)
        book.cluster_size.copy_(counts * scale)
        book.embed_avg.copy_(means * book.cluster_size[:, None])
        book.inited.fill_(1)
        residual = residual - layer.decode(layer.encode(residual))


@torch.no_grad()
def rebalance(tokenizer: HiggsAudioTokenizer, latents: Tensor, acoustic_share: float) -> Tensor:
    """Rescales the latent space so that distances measure the error at the decoders' inputs; returns the new latents.

    The quantizer minimizes squared error, so it spends its codes on directions of high energy. Without rebalancing, the
    semantic half had nearly all of the energy, and few codes were left for the acoustic half. Here the energy of a
    direction becomes its share in the inputs of the two decoders, each relative to its variance: `acoustic_share` for
    the acoustic decoder, the rest for the semantic one. The map is folded into `fc` and its inverse into `fc1` and
    `fc2`, so only the input of the quantizer changes. The mean energy of a frame becomes 1.

    Args:
        tokenizer: modified in place.
        latents: `[N, D]`, from many clips.
        acoustic_share: share of the energy for the acoustic decoder.
    """
    centered = latents - latents.mean(0)
    metric = latents.new_zeros(latents.shape[1], latents.shape[1])
    for layer, share in ((tokenizer.fc2, acoustic_share), (tokenizer.fc1, 1 - acoustic_share)):
        variance = (centered @ layer.weight.T).pow(2).sum(1).mean()
        metric += share * layer.weight.T @ layer.weight / variance
    values, axes = torch.linalg.eigh(metric.double())
    scale = values.clamp(min=1e-4 * float(values.max())).sqrt()
    forward, inverse = ((axes * s @ axes.T).float() for s in (scale, 1 / scale))  # [D, D]
    tokenizer.fc.weight.copy_(forward @ tokenizer.fc.weight)
    tokenizer.fc.bias.copy_(forward @ tokenizer.fc.bias)
    for layer in (tokenizer.fc1, tokenizer.fc2):
        layer.weight.copy_(layer.weight @ inverse)
    return latents @ forward


@torch.no_grad()
def update_codebook(book: Codebook, vectors: Tensor, codes: Tensor, decay: float) -> None:
    """Updates the running averages from `vectors [N, width]` and their nearest entries `codes [N]`."""
    counts = torch.bincount(codes, minlength=len(book.embed)).float()
    sums = torch.zeros_like(book.embed).index_add_(0, codes, vectors)
    book.cluster_size.lerp_(counts, 1 - decay)
    book.embed_avg.lerp_(sums, 1 - decay)
    book.embed.copy_(book.embed_avg / book.cluster_size.clamp(min=EPSILON)[:, None])


@torch.no_grad()
def replace_dead_entries(book: Codebook, vectors: Tensor, generator: torch.Generator) -> int:
    """Replaces entries used less than DEAD_SHARE of the mean by random `vectors [N, width]`; returns their number.

    Their sums and counts are reset to the mean usage; otherwise they would be dead again after the next update.
    """
    mean = book.cluster_size.mean()
    dead = book.cluster_size < DEAD_SHARE * mean
    count = int(dead.sum())
    fresh = vectors[torch.randint(len(vectors), (count,), generator=generator)]
    book.embed[dead] = fresh
    book.cluster_size[dead] = mean
    book.embed_avg[dead] = fresh * mean
    return count


def perplexity(book: Codebook) -> float:
    """Returns the effective number of entries in use: exp of the entropy of the running counts."""
    share = book.cluster_size / book.cluster_size.sum().clamp(min=EPSILON)
    return float(torch.exp(-(share * share.clamp(min=1e-10).log()).sum()))
