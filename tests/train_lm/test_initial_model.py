"""Tests of the initial model of a run: a Llama or a checkpoint."""

import dataclasses

import numpy as np
import pytest
import torch
from runs import GROUPED_TEXT, lm_recipe
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.start import initial_model


def test_a_llama_initializes_the_layers_for_text_and_audio(recipe, processor, tmp_path):
    config = LlamaConfig(**{**GROUPED_TEXT, "vocab_size": 300, "tie_word_embeddings": True})
    llama = LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path / "llama")
    model = initial_model(dataclasses.replace(recipe, base=str(tmp_path / "llama"), text_config={}), processor).eval()
    ids = torch.randint(20, 300, (1, 9))
    ids[torch.isin(ids, torch.tensor(model.config.audio_placeholder_ids))] = 20
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).text_logits[..., :300], llama(input_ids=ids).logits)
    layer, source = model.model.layers[0], llama.model.layers[0]
    assert torch.equal(layer.audio_mlp.gate_proj.weight, source.mlp.gate_proj.weight)
    assert torch.equal(layer.audio_input_layernorm.weight, source.input_layernorm.weight)
    rows = model.model.embed_tokens.weight
    assert len(rows) == len(processor.tokenizer) > 300
    torch.testing.assert_close(rows[300:], llama.model.embed_tokens.weight.mean(0).expand(len(rows) - 300, -1))


def test_a_checkpoint_and_a_llama_together_are_a_recipe_error(recipe, processor):
    with pytest.raises(RecipeError, match="one of them"):
        initial_model(dataclasses.replace(recipe, start="a", base="b"), processor)


@pytest.mark.parametrize("sizes", [{"audio_num_codebooks": 4}, {"audio_codebook_size": 512}], ids=str)
def test_a_checkpoint_with_other_codebooks_is_a_recipe_error(encoded, tiny_checkpoint, processor, tmp_path, sizes):
    """Earlier, it was loaded, and the first step failed inside the model."""
    config = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).config.to_dict()
    size = sizes.get("audio_codebook_size", 1024)
    ids = {"audio_stream_bos_id": size, "audio_stream_eos_id": size + 1}
    other = HiggsAudioForConditionalGeneration(HiggsAudioConfig(**{**config, **sizes, **ids}))
    other.save_pretrained(tmp_path / "start")
    recipe = lm_recipe(encoded, tiny_checkpoint, start=str(tmp_path / "start"), output=str(tmp_path / "run"))
    with pytest.raises(RecipeError, match="and the processor 8 of 1024"):
        lm.train_language_model(recipe)
    assert not (tmp_path / "run").exists()


def test_two_runs_from_a_checkpoint_are_equal(encoded, tiny_checkpoint, tmp_path):
    """Earlier, the heads of the guide depended on torch's global generator, so that runs in different processes
    differed."""
    results = []
    for number in range(2):
        torch.manual_seed(number)
        output = str(tmp_path / str(number))
        recipe = lm_recipe(encoded, tiny_checkpoint, start=str(tiny_checkpoint), output=output, num_steps=2)
        results.append(load_file(lm.train_language_model(recipe) / "model.safetensors"))
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])
