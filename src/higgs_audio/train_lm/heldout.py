"""Evaluation of a language model during training, on held-out clips."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from higgs_audio.data.shards import EncodedClip
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.collate import Batch, collate
from higgs_audio.train_lm.composer import Composer, ExampleMix
from higgs_audio.train_lm.losses import LanguageModelLoss, counts
from higgs_audio.train_lm.recipe import LanguageModelRecipe

NUM_CONVERSATIONS = 48  # approximately, spread evenly over the clips
BATCH_SIZE = 16


@torch.no_grad()
def evaluate_heldout(
    module: LanguageModelLoss,
    heldout: Sequence[EncodedClip],
    recipe: LanguageModelRecipe,
    processor: HiggsAudioProcessor,
) -> dict[str, float]:
    """Returns the held-out loss of each codebook, their mean, and the text gain, in nats.

    The text gain is the increase of the loss of codebook 0 when every text is replaced by another text; it is 0 for a
    model that ignores the text. It is missing if no clip is aligned, because the alignment identifies the text tokens.
    """
    composer = Composer(heldout, recipe.profiles, recipe.default_speaker, ExampleMix(reference=0.0, plain=0.0))
    generator = torch.Generator().manual_seed(0)
    indices = range(0, len(heldout), max(1, len(heldout) // NUM_CONVERSATIONS))
    dialogues = [composer.compose(index, generator) for index in indices]
    starts = range(0, len(dialogues), BATCH_SIZE)
    batches = [collate(dialogues[start : start + BATCH_SIZE], processor) for start in starts]
    module.eval()
    losses = mean_codebook_losses(module, batches)
    values = {f"heldout_{k}": value for k, value in enumerate(losses)} | {"heldout": sum(losses) / len(losses)}
    if any(len(sample.phones) for sample in heldout):
        reversed_texts = [with_reversed_texts(batch) for batch in batches]
        values["text_gain"] = mean_codebook_losses(module, reversed_texts)[0] - losses[0]
    module.train()
    return values


def mean_codebook_losses(module: LanguageModelLoss, batches: Sequence[Batch]) -> list[float]:
    """Returns the mean loss of each codebook over all labels of the batches."""
    config, device = module.model.config, module.model.device
    names = [f"codebook_{k}" for k in range(config.audio_num_codebooks)]
    sums, numbers = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for batch in batches:
        labels = counts(batch, config.audio_stream_eos_id)
        terms = module(batch.to(device))
        for name in names:
            sums[name] += float(terms[name])
            numbers[name] += labels[name]
    return [sums[name] / max(1, numbers[name]) for name in names]


def with_reversed_texts(batch: Batch) -> Batch:
    """Returns the batch with the phones of each row in reverse order: another text with the same symbols."""
    ids: Tensor = batch.inputs["input_ids"].clone()
    for row, targets in enumerate(batch.attention_targets):
        positions = targets[targets >= 0].unique()
        ids[row, positions] = ids[row, positions.flip(0)]
    return dataclasses.replace(batch, inputs={**batch.inputs, "input_ids": ids})
