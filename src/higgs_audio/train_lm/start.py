"""The initial model of a language-model run."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from higgs_audio import special_tokens
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import RecipeError
from higgs_audio.model.layers import FeedForward, RMSNorm
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.recipe import LanguageModelRecipe, is_guided
from higgs_audio.train_lm.tokens import copy_rows, grow_vocabulary

# Fields of HiggsAudioConfig that are ids of tokens of the prompt format.
TOKEN_FIELDS = {
    "audio_bos_token_id": special_tokens.AUDIO_BOS,
    "audio_eos_token_id": special_tokens.AUDIO_EOS,
    "audio_out_bos_token_id": special_tokens.AUDIO_OUT_BOS,
    "audio_delay_token_id": special_tokens.AUDIO_DELAY,
    "audio_in_token_idx": special_tokens.AUDIO_IN,
    "audio_out_token_idx": special_tokens.AUDIO_OUT,
    "pad_token_id": special_tokens.PAD,
    "bos_token_id": special_tokens.BEGIN,
    "eos_token_id": special_tokens.END_OF_TURN,
}


def initial_model(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """Returns the recipe's start checkpoint, in float32, or a new model.

    Raises:
        RecipeError: the vocabulary or the codebooks of the checkpoint do not match the processor.
    """
    if recipe.start and recipe.base:
        raise RecipeError(
            f"start={recipe.start!r} and base={recipe.base!r}: a run starts from only one of them; remove the other"
        )
    if recipe.base:
        return model_from_llama(recipe, processor)
    if not recipe.start:
        return new_model(recipe, processor)
    torch.manual_seed(recipe.seed)  # the guide's heads are new, and two runs of a recipe must initialize them equally
    model = HiggsAudioForConditionalGeneration.from_pretrained(recipe.start, dtype=torch.float32)
    size, num_tokens = model.model.text_config.vocab_size, len(processor.tokenizer)
    if recipe.new_tokens and 0 < num_tokens - size <= len(recipe.new_tokens):
        grow_vocabulary(model, num_tokens)
    elif size != num_tokens:
        raise RecipeError(
            f"{recipe.start!r} has {size} text tokens and the processor {num_tokens}: "
            "use the checkpoint's own processor"
        )
    found = (model.config.audio_num_codebooks, model.config.audio_codebook_size)
    expected = (processor.config.audio_num_codebooks, processor.config.audio_codebook_size)
    if found != expected:
        raise RecipeError(
            f"{recipe.start!r} has {found[0]} codebooks of {found[1]} and the processor {expected[0]} of {expected[1]}"
            ": use the checkpoint's own processor"
        )
    return model


def check_recipe_fits(recipe: LanguageModelRecipe, model: HiggsAudioForConditionalGeneration) -> None:
    """Raises RecipeError if the recipe refers to layers or codebooks that the model does not have."""
    num_layers, num_codebooks = len(model.model.layers), model.config.audio_num_codebooks
    layers = {"guide_layers": recipe.guide_layers, "phone_layer": (recipe.phone_layer,)} if is_guided(recipe) else {}
    if recipe.voice_layers:
        layers["voice_layers"] = recipe.voice_layers
    if recipe.name_weight:
        layers["name_layer"] = (recipe.name_layer,)
    for name, numbers in layers.items():
        if unknown := [n for n in numbers if not isinstance(n, int) or not 0 <= n < num_layers]:
            raise RecipeError(f"{name} has layer {unknown[0]}; the model has the layers 0 to {num_layers - 1}")
        if not numbers:
            raise RecipeError(
                f"{name} is empty; give at least one layer, or set guide_weight and phone_weight to 0 to train without "
                "the guide"
            )
    weights = recipe.codebook_weights
    if len(weights) != num_codebooks:
        raise RecipeError(
            f"codebook_weights has {len(weights)} numbers and the model {num_codebooks} codebooks; give one for each"
        )
    if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights) or not any(weights):
        raise RecipeError(f"codebook_weights={list(weights)} must be 0 or more, and at least one above 0")


def new_model(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """Returns a model of the recipe's size with the processor's token ids and random weights."""
    text = {"vocab_size": len(processor.tokenizer), **recipe.text_config}
    ids: dict[str, Any] = {
        field: processor.tokenizer.convert_tokens_to_ids(token) for field, token in TOKEN_FIELDS.items()
    }
    config = HiggsAudioConfig(text_config=text, audio_adapter_type=recipe.audio_adapter_type, codec="codec", **ids)
    torch.manual_seed(recipe.seed)
    model = HiggsAudioForConditionalGeneration(config)
    scale = (2 * len(model.model.layers)) ** -0.5  # keeps the scale of the residual stream at initialization (GPT-2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(scale)
    return model


def model_from_llama(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """Returns a new model with the weights of a Llama; its norms and feed-forward networks initialize text and audio.

    Rows of tokens that the Llama lacks are the mean of its rows. Audio embeddings and the audio head are random.
    """
    llama = LlamaForCausalLM.from_pretrained(recipe.base, dtype=torch.float32)
    text = {**llama.config.to_dict(), "vocab_size": len(processor.tokenizer), **recipe.text_config}
    model = new_model(replace(recipe, text_config=text), processor)
    loaded = llama.state_dict()
    loaded["text_lm_head.weight"] = loaded.pop("lm_head.weight")
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            source = loaded.get(name.replace(".audio_", "."))
            if source is not None:
                copy_rows(source, weight)
    return model


def compile_modules(model: nn.Module) -> None:
    """Compiles norms and feed-forward networks in place, with dynamic shapes because batches differ in length."""
    for module in model.modules():
        if isinstance(module, RMSNorm | FeedForward):
            module.compile(dynamic=True)
