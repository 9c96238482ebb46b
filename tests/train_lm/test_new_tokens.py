"""Tests of tokens that a recipe adds to the vocabulary."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from corpus import write_samples
from runs import OVERFIT, generated_codes, lm_recipe, random_clips

from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.tokens import grow_vocabulary


@pytest.fixture
def plain_checkpoint(tiny_checkpoint, tmp_path):
    """The tiny checkpoint with a processor without a text front end."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_checkpoint, folder)
    own = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    HiggsAudioProcessor(own.tokenizer, own.audio_tokenizer, text_frontend="none").save_pretrained(folder)
    return folder


def test_a_model_learns_new_tokens_and_its_checkpoint_has_them(plain_checkpoint, tmp_path):
    """Two clips whose texts differ in the new token only."""
    before = len(HiggsAudioProcessor.from_pretrained(plain_checkpoint).tokenizer)
    clips = random_clips(["[whisper] Hello there.", "[shout] Hello there."])
    data = tmp_path / "data"
    data.mkdir()
    recipe = lm_recipe(
        write_samples(data, clips),
        plain_checkpoint,
        start=str(plain_checkpoint),
        new_tokens=("[whisper]", "[shout]"),
        output=str(tmp_path / "run"),
        num_steps=80,
        batch_positions=400,
        guide_weight=0.0,
        phone_weight=0.0,
        peak_rate=1e-2,
        final_rate=1e-3,
        **OVERFIT,
    )
    folder = lm.train_language_model(recipe)
    model = HiggsAudioForConditionalGeneration.from_pretrained(folder).eval()
    processor = HiggsAudioProcessor.from_pretrained(folder)
    assert len(processor.tokenizer) == before + 2 == model.config.text_config.vocab_size
    assert len(processor.tokenizer("[whisper]", add_special_tokens=False)["input_ids"]) == 1
    for text, codes, _ in clips:
        assert np.array_equal(generated_codes(model, processor, text)[0], codes)
    again = dataclasses.replace(
        recipe, start=str(folder), processor=str(folder), output=str(tmp_path / "again"), num_steps=1
    )
    grown = HiggsAudioForConditionalGeneration.from_pretrained(lm.train_language_model(again))
    assert grown.config.text_config.vocab_size == before + 2  # a checkpoint that already has the tokens is not extended


def test_a_grown_vocabulary_keeps_its_rows_and_initializes_new_ones_with_their_mean(plain_checkpoint):
    model = HiggsAudioForConditionalGeneration.from_pretrained(plain_checkpoint)
    table, head = (weight.detach().clone() for weight in (model.model.embed_tokens.weight, model.text_lm_head.weight))
    grow_vocabulary(model, len(table) + 2)
    for old, new in ((table, model.model.embed_tokens.weight), (head, model.text_lm_head.weight)):
        assert torch.equal(new[:-2], old)
        assert torch.allclose(new[-2:], old.mean(0).expand(2, -1))


@pytest.mark.parametrize(
    ("tokens", "fields", "message"),
    [
        (("<|eot_id|>",), {}, "in a form that texts may contain"),
        (("[a]", "[a]"), {}, "give each token once"),
        ((" ",), {}, "' '; give each token once"),
        (("[a]",), {"train": ("audio",)}, r"\['\[a\]'\] are not trained"),
    ],
)
def test_invalid_new_tokens_are_a_recipe_error(plain_checkpoint, tmp_path, tokens, fields, message):
    data = write_samples(tmp_path, random_clips(["Hello there."]))
    recipe = lm_recipe(data, plain_checkpoint, output=str(tmp_path / "run"), new_tokens=tokens, **fields)
    with pytest.raises(RecipeError, match=message):
        lm.train_language_model(recipe)


def test_new_tokens_with_a_phoneme_front_end_are_a_recipe_error(tiny_checkpoint, tmp_path):
    data = write_samples(tmp_path, random_clips(["Hello there."]))
    recipe = lm_recipe(data, tiny_checkpoint, output=str(tmp_path / "run"), new_tokens=("[a]",))
    with pytest.raises(RecipeError, match="converts texts to phonemes"):
        lm.train_language_model(recipe)
