"""Tests of training runs of a language model: killed and resumed, and overfitted to a few clips."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import TEXT, write_samples
from runs import (
    OVERFIT,
    check_resumed,
    encode_corpus,
    generated_codes,
    lm_recipe,
    random_clips,
    read_metrics,
    steps_of,
)
from safetensors.numpy import load_file

from higgs_audio.evaluate.benchmark import heldout as heldout_sentences
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.recipe import LanguageModelRecipe
from higgs_audio.training.recipe import load_recipe, save_recipe


def test_a_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(encoded, tiny_checkpoint, tmp_path):
    """Killed once in the steps on short clips, and once in the steps on all clips."""
    recipe = lm_recipe(encoded, tiny_checkpoint, num_steps=8, batch_positions=400, short_share=0.5)
    check_resumed(tmp_path, lm.train_language_model, recipe, kills=(4, 4))


@pytest.mark.slow
def test_a_command_killed_with_sigkill_at_any_step_resumes_to_the_same_checkpoint(encoded, tiny_checkpoint, tmp_path):
    """The step differs between runs of this test."""
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        recipe = lm_recipe(encoded, tiny_checkpoint, output=str(folder), num_steps=60, batch_positions=400, log_every=1)
        save_recipe(recipe, tmp_path / f"{folder.name}.yaml")
    command = [sys.executable, "-m", "higgs_audio", "train", "lm"]
    last = random.randint(1, 40)
    with subprocess.Popen([*command, tmp_path / "killed.yaml"], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (steps_of(folders[1]) and steps_of(folders[1])[-1] >= last):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert steps_of(folders[1])[-1] < 60
    for folder in folders:
        subprocess.run([*command, tmp_path / f"{folder.name}.yaml"], check=True, capture_output=True)
    whole, killed = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert all(np.array_equal(whole[name], killed[name]) for name in whole), f"killed at step {last}"
    assert steps_of(folders[1]) == steps_of(folders[0])


def test_a_tiny_model_overfits_32_clips_and_generates_their_codes(tiny_checkpoint, processor, tmp_path):
    """Covers encoded clips, prompts, delay, labels, loss, checkpoint, generation and the reverted delay."""
    clips = random_clips([sentence.text for sentence in heldout_sentences(limit=32).sentences])
    data = write_samples(tmp_path, clips)
    recipe = lm_recipe(
        data,
        tiny_checkpoint,
        output=str(tmp_path / "run"),
        text_config={**TEXT, "hidden_size": 96, "intermediate_size": 144, "num_attention_heads": 4},
        num_steps=180,
        batch_positions=1600,
        guide_weight=0.1,
        peak_rate=6e-3,
        final_rate=6e-4,
        warmup=20,
        **OVERFIT,
    )
    model = HiggsAudioForConditionalGeneration.from_pretrained(lm.train_language_model(recipe)).eval()
    assert read_metrics(tmp_path / "run")[-1]["heldout"] < 0.01
    for text, codes, _ in clips:  # prompts differ in the text only
        generated, reason = generated_codes(model, processor, text)
        assert np.array_equal(generated, codes)
        assert reason == "stop"


def test_a_run_on_clips_without_alignment_has_no_guide(tiny_checkpoint, tmp_path):
    """The guide's layers in the recipe are not checked: the defaults are nano's, which has more layers."""
    data = encode_corpus(tmp_path, tiny_checkpoint)
    defaults = {name: getattr(LanguageModelRecipe("", "", "", ""), name) for name in ("guide_layers", "phone_layer")}
    sizes = {"num_steps": 3, "batch_positions": 400, "warmup": 1, "log_every": 1, "check_every": 3}
    lm.train_language_model(lm_recipe(data, tiny_checkpoint, output=str(tmp_path), **sizes, **defaults))
    metrics = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"look", "phone", "phone_accuracy", "text_gain"}.isdisjoint(row) for row in metrics)
    assert {"codebook_0", "text", "norm"} <= set(metrics[0]) and "heldout_0" in metrics[-1]
    assert load_recipe(tmp_path / "recipe.yaml", LanguageModelRecipe).guide_weight == 0


def test_a_run_in_bfloat16_with_frozen_bfloat16_weights_learns(recipe):
    half = dataclasses.replace(
        recipe,
        lora_rank=4,
        precision="bfloat16",
        frozen_precision="bfloat16",
        guide_weight=0.0,
        phone_weight=0.0,
        voice_layers=(),
        name_weight=0.0,
        num_steps=24,
        peak_rate=3e-2,
        gradient_checkpointing=True,
    )
    state = HiggsAudioForConditionalGeneration.from_pretrained(lm.train_language_model(half)).state_dict()
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    losses = [line["heldout"] for line in read_metrics(Path(half.output)) if "heldout" in line]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_samples_during_a_run_do_not_change_it(recipe, tmp_path):
    """The samples of each step are in a separate folder, and their word error rate is in the metrics."""
    without = lm.train_language_model(recipe)
    with_samples = dataclasses.replace(recipe, output=str(tmp_path / "with_samples"), sample_every=3, num_samples=2)
    path = lm.train_language_model(with_samples)
    assert (path / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()
    files = sorted(p.relative_to(path.parent / "samples").as_posix() for p in path.parent.rglob("samples/*/*"))
    assert files == ["3/0.wav", "3/1.wav", "6/0.wav", "6/1.wav"]
    lines = [line for line in read_metrics(path.parent) if "sample_wer" in line]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(line["sample_seconds"] > 0 for line in lines)
