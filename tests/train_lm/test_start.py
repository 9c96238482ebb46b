"""Tests of the recipe of a run, and of its initial checkpoint."""

import pytest
import torch

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_codec import teacher
from higgs_audio.train_lm.recipe import LanguageModelRecipe, example_mix
from higgs_audio.train_lm.start import initial_model, new_model

SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "head_dim",
)


def lm_recipe(tiny_checkpoint, **fields):
    return LanguageModelRecipe("", "", str(tiny_checkpoint), "", **fields)


def test_the_shares_of_a_recipe_are_those_of_the_mix():
    shares = {"reference": 0.11, "plain": 0.12, "several": 0.13, "cast": 0.14, "joined": 0.15, "switch": 0.16}
    shares["unread"] = 0.17
    mix = example_mix(LanguageModelRecipe("", "", "", "", **{f"{name}_share": share for name, share in shares.items()}))
    assert {name: getattr(mix, name) for name in shares} == shares


@pytest.mark.parametrize("frames", [[60], [0, 60], [80, 60]])
def test_reference_frames_must_be_a_minimum_and_a_maximum(frames):
    with pytest.raises(RecipeError, match="must be a minimum and a maximum"):
        example_mix(LanguageModelRecipe("", "", "", "", reference_frames=tuple(frames)))


@pytest.mark.parametrize("turns", [(), (0.0, 0.0), (0.5, -0.1)])
def test_more_turns_must_be_shares(turns):
    with pytest.raises(RecipeError, match="more_turns"):
        example_mix(LanguageModelRecipe("", "", "", "", more_turns=turns))


def test_a_run_starts_from_a_checkpoint_in_float32(tiny_checkpoint, processor):
    recipe = lm_recipe(tiny_checkpoint, start=str(tiny_checkpoint), text_config={"hidden_size": 999})
    model = initial_model(recipe, processor)
    saved = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    weights = dict(model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], weight) for name, weight in saved.named_parameters())


def test_a_checkpoint_with_another_vocabulary_is_rejected(tiny_checkpoint, processor, tmp_path):
    config = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).model.text_config
    text = {name: getattr(config, name) for name in SIZES} | {"vocab_size": 40}
    new_model(lm_recipe(tiny_checkpoint, text_config=text), processor).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="has 40 text tokens"):
        initial_model(lm_recipe(tiny_checkpoint, start=str(tmp_path)), processor)


def test_a_teacher_from_a_tokenizer_keeps_its_hubert_and_trains_only_the_head(tiny_checkpoint):
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec").eval()
    new_teacher = teacher.teacher_from_tokenizer(str(tiny_checkpoint / "codec"), seed=0).eval()
    trained = [name for name, weight in new_teacher.named_parameters() if weight.requires_grad]
    assert trained == ["lm_head.weight", "lm_head.bias"]
    sound = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = codec.semantic_model(sound).last_hidden_state
        assert torch.equal(new_teacher.hubert(sound).last_hidden_state, expected)
