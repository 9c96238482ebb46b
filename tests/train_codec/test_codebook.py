"""Tests of codebook training: k-means, running averages, dead entries."""

import itertools

import pytest
import torch
from corpus import HUBERT
from runs import VOCOS
from torch.nn import functional as F

from higgs_audio.codec import HiggsAudioTokenizerConfig
from higgs_audio.codec.quantizer import Codebook, ResidualVectorQuantizer
from higgs_audio.train_codec.codebook import (
    DEAD_SHARE,
    init_codebooks,
    kmeans,
    perplexity,
    replace_dead_entries,
    update_codebook,
)


def blobs(count, num_centers, seed=0):
    """Returns vectors [count, 16] around `num_centers` centers far from zero."""
    generator = torch.Generator().manual_seed(seed)
    centers = 3 + torch.randn(num_centers, 16, generator=generator)
    return centers[torch.arange(count) % num_centers] + 0.1 * torch.randn(count, 16, generator=generator)


def started_book(vectors, size=64, scale=1.0):
    """Returns a codebook with the means, sums and counts of k-means, as set by `init_codebooks`."""
    means, counts = kmeans(vectors, size, 10, torch.Generator().manual_seed(1))
    book = Codebook(size, vectors.shape[1])
    book.embed.copy_(means)
    book.cluster_size.copy_(counts * scale)
    book.embed_avg.copy_(means * book.cluster_size[:, None])
    return book


def quantization_error(book, vectors):
    return float((F.embedding(book.nearest(vectors), book.embed) - vectors).pow(2).mean())


def test_kmeans_converges_to_the_means_of_the_nearest_vectors():
    vectors = blobs(600, 6)
    means, counts = kmeans(vectors, 20, 60, torch.Generator().manual_seed(4))
    nearest = torch.cdist(vectors, means).argmin(1)
    for number in range(20):
        torch.testing.assert_close(means[number], vectors[nearest == number].mean(0))
        assert int(counts[number]) == int((nearest == number).sum())
    guess = vectors[torch.randperm(600, generator=torch.Generator().manual_seed(4))[:20]]
    errors = [float(torch.cdist(vectors, table).min(1).values.pow(2).mean()) for table in (means, guess)]
    assert errors[0] < errors[1]


def test_kmeans_of_repeated_vectors_has_finite_means_and_no_zero_count():
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    means, counts = kmeans(vectors, 16, 5, torch.Generator().manual_seed(0))
    assert bool(means.isfinite().all())
    assert int(counts.min()) == 1


def test_running_averages_keep_the_codebook_of_kmeans():
    """Earlier, the first update divided all entries by their counts. EnCodec and X-codec initialize `embed_avg` with
    the means and `cluster_size` with the counts, and the next update divides one by the other. In a simulation, the
    first update increased the squared error from 0.257 to 1.373, and half of the entries were dead within sixty
    updates. With sums (means times counts), as in Mimi, the error stays at 0.25."""
    vectors = blobs(4000, 200)
    book = started_book(vectors)
    before, norm = quantization_error(book, vectors), float(book.embed.norm())
    used = len(book.nearest(vectors).unique())
    for _ in range(60):
        update_codebook(book, vectors, book.nearest(vectors), decay=0.99)
        assert quantization_error(book, vectors) < 1.01 * before
        assert float(book.embed.norm()) > 0.99 * norm
    assert len(book.nearest(vectors).unique()) >= used

    shrinking = started_book(vectors)
    shrinking.embed_avg.copy_(shrinking.embed)
    update_codebook(shrinking, vectors, shrinking.nearest(vectors), decay=0.99)
    assert quantization_error(shrinking, vectors) > 3 * before, "this test would not detect the error"


def test_an_updated_entry_is_its_decayed_sum_over_its_decayed_count():
    vectors = blobs(300, 40)
    book = started_book(vectors, size=32)
    sums, counts = book.embed_avg.clone(), book.cluster_size.clone()
    codes = book.nearest(vectors)
    update_codebook(book, vectors, codes, decay=0.9)
    for entry in range(32):
        own = vectors[codes == entry]
        count = 0.9 * counts[entry] + 0.1 * len(own)
        expected = (0.9 * sums[entry] + 0.1 * own.sum(0)) / count
        torch.testing.assert_close(book.embed[entry], expected)
        torch.testing.assert_close(book.cluster_size[entry], count)


def test_started_codebooks_are_consistent_and_each_layer_reduces_the_residual():
    config = HiggsAudioTokenizerConfig(
        acoustic_model_config=VOCOS, semantic_model_config=HUBERT, codebook_dim=8, codebook_size=32
    )
    quantizer = ResidualVectorQuantizer(config)
    latents = torch.randn(1500, config.hidden_size, generator=torch.Generator().manual_seed(0))
    init_codebooks(quantizer, latents, 10, 0.1, torch.Generator().manual_seed(1))
    energies, residual = [float(latents.pow(2).mean())], latents
    for layer in quantizer.layers:
        book = layer.codebook
        torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], book.embed)
        assert float(book.inited) == 1
        assert 140 < float(book.cluster_size.sum()) < 160, "counts are of one batch out of ten"
        residual = residual - layer.decode(layer.encode(residual)).detach()
        energies.append(float(residual.pow(2).mean()))
    assert all(after < before for before, after in itertools.pairwise(energies))


def test_entries_are_dead_relative_to_the_mean_usage():
    """With 1,600 vectors and 1024 entries the mean usage is 1.56: a limit of 2 uses would replace most entries."""
    vectors = blobs(1600, 1600)
    book = started_book(vectors, size=1024)
    assert 1.5 < float(book.cluster_size.mean()) < 1.6
    assert float((book.cluster_size < 2).float().mean()) > 0.5
    assert replace_dead_entries(book, vectors, torch.Generator()) == 0
    limit = DEAD_SHARE * float(book.cluster_size.mean())
    book.cluster_size[:100], book.cluster_size[100:200] = 0.5 * limit, 1.5 * limit
    assert replace_dead_entries(book, vectors, torch.Generator().manual_seed(0)) == 100


def test_a_replaced_entry_is_a_vector_of_the_batch_and_is_not_dead_after_the_next_update():
    """If only the entry is replaced, not its count and sum, it is dead again in the next step."""
    vectors = blobs(500, 50)
    book = started_book(vectors)
    book.cluster_size[3], book.embed[3], book.embed_avg[3] = 0, 1e6, 0
    assert replace_dead_entries(book, vectors, torch.Generator().manual_seed(0)) == 1
    replaced = book.embed[3].clone()
    assert bool((vectors == replaced).all(1).any())
    torch.testing.assert_close(book.embed_avg[3] / book.cluster_size[3], replaced)
    update_codebook(book, vectors, book.nearest(vectors), decay=0.99)
    assert replace_dead_entries(book, vectors, torch.Generator().manual_seed(0)) == 0
    assert quantization_error(book, vectors) < 1


def test_perplexity_counts_the_entries_in_use():
    book = Codebook(64, 4)
    book.cluster_size[:16] = 3
    assert perplexity(book) == pytest.approx(16, rel=1e-4)
    book.cluster_size.fill_(1)
    assert perplexity(book) == pytest.approx(64, rel=1e-4)
