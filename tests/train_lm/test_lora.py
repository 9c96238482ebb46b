"""Tests of training parts of a model, and of LoRA adapters."""

import dataclasses

import pytest
import torch
from killing import KilledError, killed_at
from runs import random_dialogues, tiny_model
from transformers import HiggsAudioV2ForConditionalGeneration

from higgs_audio.convert import convert
from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.lora import LORA_TARGETS, Lora, add_lora, freeze_except, merge_adapters
from higgs_audio.train_lm.start import initial_model


@pytest.fixture(scope="module")
def dialogues():
    return random_dialogues()


def trained_names(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_the_audio_part_has_the_parameters_that_only_audio_positions_use(processor):
    model = tiny_model(processor)
    freeze_except(model, ["audio"])
    kinds = {".".join(part for part in name.split(".") if not part.isdigit()) for name in trained_names(model)}
    feed_forward = {f"model.layers.audio_mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    norms = {f"model.layers.audio_{name}_layernorm.weight" for name in ("input", "post_attention")}
    tables = {"model.embed_audio_tokens.embed_audio_tokens.weight", "audio_lm_head.weight"}
    assert kinds == feed_forward | norms | tables


def test_every_parameter_is_in_a_part(processor):
    model = tiny_model(processor)
    freeze_except(model, ["audio", "text", "attention"])
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


def test_an_unknown_part_is_a_recipe_error_that_names_the_nearest(processor):
    with pytest.raises(RecipeError, match="did you mean 'audio'"):
        freeze_except(tiny_model(processor), ["audi"])


def test_only_the_trained_parts_change(recipe, processor):
    before = initial_model(recipe, processor).state_dict()
    path = lm.train_language_model(dataclasses.replace(recipe, train=("audio",), guide_weight=0.0, phone_weight=0.0))
    after = HiggsAudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("audio" in name for name in changed)


@pytest.mark.parametrize("also", [(), ("heads",)], ids=str)
def test_a_model_with_merged_adapters_has_the_same_logits(dialogues, processor, also):
    model = tiny_model(processor).eval()
    plain = tiny_model(processor).eval()
    lora = Lora(rank=4, alpha=12.0, also=also)
    add_lora(model, lora)
    trained = trained_names(model)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained if ".lora_" in name} == set(LORA_TARGETS)
    assert any(".audio_mlp." in name for name in trained)
    assert {name for name in trained if ".lora_" not in name} == (
        {"audio_lm_head.weight", "text_lm_head.weight"} if also else set()
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.1)
    inputs = collate(dialogues[:2], processor).inputs
    without = plain(**inputs).logits
    plain.load_state_dict(merge_adapters(model.state_dict(), lora))
    logits = model(**inputs).logits
    torch.testing.assert_close(plain(**inputs).logits, logits, rtol=1e-4, atol=1e-4)
    assert float((without - logits).detach().abs().max()) > 1e-2


def test_a_run_with_adapters_writes_a_plain_checkpoint_and_resumes(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, lora_rank=4, guide_weight=0.0, phone_weight=0.0)
    path = lm.train_language_model(recipe)
    model = HiggsAudioForConditionalGeneration.from_pretrained(path)
    assert not any("lora" in name for name in model.state_dict())
    broken = dataclasses.replace(recipe, output=str(tmp_path / "again"))
    with killed_at(5), pytest.raises(KilledError):
        lm.train_language_model(broken)
    again = lm.train_language_model(broken)
    ours, theirs = (HiggsAudioForConditionalGeneration.from_pretrained(p).state_dict() for p in (path, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_fine_tuned_checkpoint_loads_in_transformers(recipe, dialogues, processor, tmp_path):
    fields = {"guide_weight": 0.0, "phone_weight": 0.0, "lora_rank": 4, "train": ("heads",)}
    path = lm.train_language_model(dataclasses.replace(recipe, **fields))
    exported = convert(path, tmp_path / "exported", "transformers")
    theirs, report = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        exported, use_text_head=True, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    ours = HiggsAudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    inputs = collate(dialogues[:1], processor).inputs
    shared = {name: inputs[name] for name in ("input_ids", "attention_mask", "audio_input_ids", "audio_input_ids_mask")}
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(**shared).logits, ours(**shared).logits.flatten(2), rtol=0, atol=1e-5)
