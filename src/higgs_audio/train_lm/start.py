"""The model that a language-model run starts with."""

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

# Fields of HiggsAudioConfig that name a token of the prompt format.
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


def first_model(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """The checkpoint that the recipe starts from, in float32, or a new model.

    Raises RecipeError where the checkpoint's vocabulary or codebooks are not the processor's.
    """
    if recipe.start and recipe.base:
        raise RecipeError(f"start={recipe.start!r} and base={recipe.base!r}: a run begins with one of them")
    if recipe.base:
        return upcycled(recipe, processor)
    if not recipe.start:
        return new_model(recipe, processor)
    torch.manual_seed(recipe.seed)  # the heads of the guide are new, and two runs of a recipe begin alike
    model = HiggsAudioForConditionalGeneration.from_pretrained(recipe.start, dtype=torch.float32)
    size, wanted = model.model.text_config.vocab_size, len(processor.tokenizer)
    if recipe.new_tokens and 0 < wanted - size <= len(recipe.new_tokens):
        grow_vocabulary(model, wanted)
    elif size != wanted:
        raise RecipeError(
            f"{recipe.start!r} reads {size} text tokens and the processor writes {wanted}: take the checkpoint's own"
        )
    theirs = (model.config.audio_num_codebooks, model.config.audio_codebook_size)
    ours = (processor.config.audio_num_codebooks, processor.config.audio_codebook_size)
    if theirs != ours:
        raise RecipeError(
            f"{recipe.start!r} has {theirs[0]} codebooks of {theirs[1]} and the processor {ours[0]} of {ours[1]}: "
            "take the checkpoint's own processor"
        )
    return model


def check_fit(recipe: LanguageModelRecipe, model: HiggsAudioForConditionalGeneration) -> None:
    """Raises RecipeError where the recipe names layers or weighs codebooks that the model does not have."""
    num_layers, num_codebooks = len(model.model.layers), model.config.audio_num_codebooks
    layers = {"guide_layers": recipe.guide_layers, "phone_layer": (recipe.phone_layer,)} if is_guided(recipe) else {}
    if recipe.voice_layers:
        layers["voice_layers"] = recipe.voice_layers
    if recipe.name_weight:
        layers["name_layer"] = (recipe.name_layer,)
    for name, numbers in layers.items():
        if beyond := [n for n in numbers if not isinstance(n, int) or not 0 <= n < num_layers]:
            raise RecipeError(f"{name} names layer {beyond[0]}; the model has the layers 0 to {num_layers - 1}")
        if not numbers:
            raise RecipeError(f"{name} names no layer; give one, or guide_weight 0 and phone_weight 0 for no guide")
    weights = recipe.codebook_weights
    if len(weights) != num_codebooks:
        raise RecipeError(f"codebook_weights has {len(weights)} numbers and the model {num_codebooks} codebooks")
    if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights) or not any(weights):
        raise RecipeError(f"codebook_weights={list(weights)} must be 0 or more, and one of them above 0")


def new_model(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """A model of the recipe's size with the processor's token ids, random weights."""
    text = {"vocab_size": len(processor.tokenizer), **recipe.text_config}
    ids: dict[str, Any] = {
        field: processor.tokenizer.convert_tokens_to_ids(token) for field, token in TOKEN_FIELDS.items()
    }
    config = HiggsAudioConfig(text_config=text, audio_adapter_type=recipe.audio_adapter_type, codec="codec", **ids)
    torch.manual_seed(recipe.seed)
    model = HiggsAudioForConditionalGeneration(config)
    scale = (2 * len(model.model.layers)) ** -0.5  # keeps the residual stream's size at the start
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(scale)
    return model


def upcycled(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """A new model with the weights of a Llama: its feed-forwards and norms serve text and sound to begin with.

    Rows of tokens that the Llama does not have are the mean of those that it has; what only sound has, embeddings and
    head, is random. Raises RecipeError where the checkpoint is no Llama.
    """
    llama = LlamaForCausalLM.from_pretrained(recipe.base, dtype=torch.float32)
    text = {**llama.config.to_dict(), "vocab_size": len(processor.tokenizer), **recipe.text_config}
    model = new_model(replace(recipe, text_config=text), processor)
    given = llama.state_dict()
    given["text_lm_head.weight"] = given.pop("lm_head.weight")
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            source = given.get(name.replace(".audio_", "."))
            if source is not None:
                copy_rows(source, weight)
    return model


def compile_parts(model: nn.Module) -> None:
    """Compiles what is elementwise or nearly so, in place, with sizes left open: batches differ in length."""
    for part in model.modules():
        if isinstance(part, RMSNorm | FeedForward):
            part.compile(dynamic=True)
