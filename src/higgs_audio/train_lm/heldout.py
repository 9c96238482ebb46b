"""How well a language model in training predicts clips that it does not train on."""

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

NUM_CONVERSATIONS, ROWS = 48, 16


@torch.no_grad()
def check(
    lesson: LanguageModelLoss,
    heldout: Sequence[EncodedClip],
    recipe: LanguageModelRecipe,
    processor: HiggsAudioProcessor,
) -> dict[str, float]:
    """Held-out losses by codebook, and how much they grow where every text is another's: the text gain, in nats.

    Where the clips were not aligned, nothing tells which tokens are the text, and there is no text gain.
    """
    composer = Composer(heldout, recipe.profiles, recipe.default_speaker, ExampleMix(reference=0.0, plain=0.0))
    generator = torch.Generator().manual_seed(0)
    numbers = range(0, len(heldout), max(1, len(heldout) // NUM_CONVERSATIONS))
    dialogues = [composer.compose(number, generator) for number in numbers]
    batches = [collate(dialogues[start : start + ROWS], processor) for start in range(0, len(dialogues), ROWS)]
    lesson.eval()
    true = codebook_means(lesson, batches)
    values = {f"heldout_{k}": value for k, value in enumerate(true)} | {"heldout": sum(true) / len(true)}
    if any(len(sample.phones) for sample in heldout):
        values["text_gain"] = codebook_means(lesson, [with_other_texts(batch) for batch in batches])[0] - true[0]
    lesson.train()
    return values


def codebook_means(lesson: LanguageModelLoss, batches: Sequence[Batch]) -> list[float]:
    """Mean loss of each codebook over all labels of the batches."""
    config, device = lesson.model.config, lesson.model.device
    names = [f"codebook_{k}" for k in range(config.audio_num_codebooks)]
    sums, numbers = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for batch in batches:
        for name, value in lesson(batch.to(device)).items():
            if name in sums:
                sums[name] += float(value)
                numbers[name] += counts(batch, config.audio_stream_eos_id)[name]
    return [sums[name] / max(1, numbers[name]) for name in names]


def with_other_texts(batch: Batch) -> Batch:
    """The batch with the spoken phonemes of each row in reversed order: the same symbols, another text."""
    ids: Tensor = batch.inputs["input_ids"].clone()
    for row, places in enumerate(batch.look):
        spoken = places[places >= 0].unique()
        ids[row, spoken] = ids[row, spoken.flip(0)]
    return dataclasses.replace(batch, inputs={**batch.inputs, "input_ids": ids})
