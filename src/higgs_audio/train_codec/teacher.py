"""Training of the semantic teacher: a small HuBERT with phoneme CTC, later frozen inside the audio tokenizer.

Its features are an input of the tokenizer's quantizer and a target of its semantic decoder. Its CTC head aligns
phonemes with frames for the language model's attention guide (`data/align.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import HubertConfig, HubertForCTC

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.align import SAMPLE_RATE, semantic_input
from higgs_audio.data.clips import Clip, batch_order, read_samples
from higgs_audio.data.manifest import read_manifests
from higgs_audio.data.phones import PHONES, phone_ids, phones
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.training.recipe import save_recipe
from higgs_audio.training.run import Run, apply_gradients, decay_groups, learning_rate, seed_step

TEACHER_RATE = 50  # HuBERT steps per second

DEFAULT_HUBERT = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": (32, 64, 128, 160, 192, 192, 192),
    "feat_extract_activation": "relu",
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 16,
}


@dataclass(frozen=True)
class TeacherRecipe:
    """All settings of a teacher run. `data` is a folder with manifests, `output` the run's folder.

    `body` is an audio tokenizer or empty. If given, the teacher is its frozen HuBERT: only a new CTC head is trained,
    and `hubert` is ignored. Published tokenizers have no CTC head; this trains one that aligns phones.
    """

    data: str
    output: str
    body: str = ""
    hubert: dict[str, Any] = field(default_factory=lambda: dict(DEFAULT_HUBERT))
    num_steps: int = 2000
    batch_seconds: float = 30.0
    peak_rate: float = 1e-3
    final_rate: float = 5e-5
    warmup: int = 200
    weight_decay: float = 0.01
    max_norm: float = 1.0
    max_seconds: float = 8.0
    timed_steps: int = 400  # first steps, on clips with known phone times; CTC alone has a long initial plateau
    noise: float = 0.01  # standard deviation of added noise, times a random factor in [0, 1]
    seed: int = 0
    save_every: int = 200
    log_every: int = 20


def new_teacher(hubert: dict[str, Any], seed: int) -> HubertForCTC:
    """Returns a HuBERT with a CTC head over PHONES (id 0 is the blank), without masking or dropout."""
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    sizes: dict[str, Any] = {**DEFAULT_HUBERT, **hubert, **dict.fromkeys(dropouts, 0.0)}
    config = HubertConfig(
        **sizes,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        vocab_size=len(PHONES) + 1,
        pad_token_id=0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    torch.manual_seed(seed)
    return HubertForCTC(config)


def teacher_from_tokenizer(tokenizer: str, seed: int) -> HubertForCTC:
    """Returns the frozen HuBERT of the audio tokenizer at `tokenizer` with a new CTC head."""
    codec = HiggsAudioTokenizer.from_pretrained(tokenizer)
    teacher = new_teacher({name: getattr(codec.config.semantic, name) for name in DEFAULT_HUBERT}, seed)
    teacher.hubert.load_state_dict(codec.semantic_model.state_dict())
    teacher.hubert.requires_grad_(False)
    return teacher


def train_teacher(recipe: TeacherRecipe) -> Path:
    """Trains the teacher; writes a transformers checkpoint to `output/model` and returns that path.

    Raises:
        RecipeError: no usable clip, or impossible values.
        NumericsError: a loss is not finite.
        CheckpointError: a checkpoint cannot be read or written.
    """
    clips = read_manifests(recipe.data, "train", recipe.max_seconds)
    targets = {clip.id: phone_ids(phones(clip.text)) for clip in clips}
    teacher = (
        teacher_from_tokenizer(recipe.body, recipe.seed) if recipe.body else new_teacher(recipe.hubert, recipe.seed)
    )
    optimizer = torch.optim.AdamW(decay_groups(teacher, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    parts = {"model": teacher, "optimizer": optimizer}
    run = Run(recipe.output, recipe.save_every, recipe.log_every)
    step = run.resume(parts)
    save_recipe(recipe, run.folder / "recipe.yaml")
    timed = [clip for clip in clips if clip.phones]
    num_timed = recipe.timed_steps if timed else 0
    timed_order = batches(timed, recipe, step) if timed else iter(())
    order = batches(clips, recipe, max(0, step - num_timed))
    while step < recipe.num_steps:
        generator = seed_step(recipe.seed, step)
        is_timed = step < num_timed
        batch = next(timed_order if is_timed else order)
        inputs = collate(batch, targets, recipe.noise, generator)
        loss = timed_loss(teacher, inputs, batch) if is_timed else teacher(**inputs).loss
        rate = learning_rate(step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
        norm = apply_gradients(loss, teacher, optimizer, rate, recipe.max_norm)
        step += 1
        run.log(step, {"timed" if is_timed else "ctc": float(loss.detach()), "norm": norm})
        if run.should_save(step, recipe.num_steps):
            run.save(step, parts)
    teacher.save_pretrained(run.folder / "model")
    return run.folder / "model"


def batches(clips: list[Clip], recipe: TeacherRecipe, start: int) -> Iterator[list[Clip]]:
    """Yields batches of clips of similar length, from batch number `start` on."""
    lengths = [int(clip.seconds * 1000) for clip in clips]
    for indices in batch_order(lengths, int(recipe.batch_seconds * 1000), recipe.seed, start):
        yield [clips[i] for i in indices]


def timed_loss(teacher: HubertForCTC, inputs: dict[str, Tensor], batch: list[Clip]) -> Tensor:
    """Returns the cross-entropy with the synthesizer's phone at the time of each step; blank between phones."""
    logits = teacher(inputs["input_values"], attention_mask=inputs["attention_mask"]).logits  # [B, T, P + 1]
    targets = torch.full(logits.shape[:2], IGNORE_INDEX)
    for row, clip in enumerate(batch):
        targets[row, : int(clip.seconds * TEACHER_RATE)] = 0
        for phone, start, end in clip.phones:
            first = round(start * TEACHER_RATE)
            targets[row, first : max(first + 1, round(end * TEACHER_RATE))] = phone_ids(phone)[0]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)


def collate(
    batch: list[Clip], targets: dict[str, list[int]], noise: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns `input_values [B, S]` at 16 kHz, `attention_mask [B, S]`, and `labels [B, P]` padded with -100."""
    waveforms = [semantic_input(read_samples(clip, SAMPLE_RATE)) for clip in batch]
    longest = max(map(len, waveforms))
    values, mask = torch.zeros(len(batch), longest), torch.zeros(len(batch), longest, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        level = noise * float(torch.rand((), generator=generator))
        values[row, : len(waveform)] = waveform + level * torch.randn(len(waveform), generator=generator)
        mask[row, : len(waveform)] = 1
    ids = [torch.tensor(targets[clip.id]) for clip in batch]
    labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=IGNORE_INDEX)
    return {"input_values": values, "attention_mask": mask, "labels": labels}
