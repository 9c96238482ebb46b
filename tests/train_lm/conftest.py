"""Prepared clips of five speakers, and conversations composed from them. Codes are random and alignments are invented,
so that all positions differ.
"""

import itertools

import numpy as np
import pytest
import torch
from corpus import TEXTS
from runs import encode_corpus, many_losses_recipe

from higgs_audio.data.phones import phones
from higgs_audio.data.shards import EncodedClip, read_encoded_clips
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.text.phonemes import phonemize
from higgs_audio.train_lm.composer import Composer, ExampleMix

SPEAKERS = ("ava", "joe", "tom", "kim", "zoe")


def make_sample(number, speaker, num_frames):
    text = TEXTS[number % len(TEXTS)]
    rng = np.random.default_rng((number, len(speaker)))
    aligned = np.linspace(0, len(phones(text)) - 1, num_frames).astype(np.uint16)
    return EncodedClip(
        f"{speaker}-{number}", text, phonemize(text), speaker, rng.integers(0, 1024, (8, num_frames)), aligned
    )


@pytest.fixture(scope="session")
def samples():
    return [make_sample(n, speaker, 18 + 3 * n) for speaker in SPEAKERS for n in range(8)]


@pytest.fixture(scope="session")
def speaker_classes():
    return {speaker: number for number, speaker in enumerate(SPEAKERS)}


@pytest.fixture(scope="session")
def mix():
    return ExampleMix(reference=0.5, plain=0.5, several=0.4, cast=0.3, joined=0.3, reference_frames=(40, 90))


@pytest.fixture(scope="session")
def processor(tiny_checkpoint):
    return HiggsAudioProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def encoded(tiny_teacher, tiny_checkpoint, tmp_path_factory):
    """The folder of the timed corpus, encoded and aligned. Tests must not modify it."""
    return encode_corpus(tmp_path_factory.mktemp("corpus"), tiny_checkpoint, tiny_teacher)


@pytest.fixture(scope="session")
def clips(encoded):
    return read_encoded_clips(encoded)


@pytest.fixture
def recipe(tiny_checkpoint, tmp_path):
    return many_losses_recipe(tmp_path, tiny_checkpoint)


@pytest.fixture(scope="session")
def dialogues(samples, mix):
    """Twenty conversations for each sample, in the order of the samples."""
    composer = Composer(samples, {"ava": "Ava", "joe": "Joe"}, "ava", mix)
    drawn = itertools.product(range(20), range(len(samples)))
    return [composer.compose(n, torch.Generator().manual_seed(1000 * epoch + n)) for epoch, n in drawn]
