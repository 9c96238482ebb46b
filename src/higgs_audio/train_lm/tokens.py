"""New tokens of the text tokenizer, such as a style or a sound in brackets, that a model learns to read in training."""

from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from torch import nn

from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.text.written import contains_special


def add_tokens(processor: HiggsAudioProcessor, tokens: Sequence[str]) -> None:
    """Adds what its tokenizer does not have yet, in place: each is one id wherever a text holds it.

    They are text, not control: a user may type them. So tokens of the shape that texts may not hold are refused.

    Raises RecipeError for those, for what is empty or given twice, and where texts are turned into phonemes first.
    """
    if not tokens:
        return
    if processor.text_frontend != "none":
        raise RecipeError(
            f"new_tokens={list(tokens)}: this processor turns texts into {processor.text_frontend}, which leave no "
            "token as it was written; train with text_frontend 'none'"
        )
    for token in tokens:
        if not token.strip() or contains_special(token) or list(tokens).count(token) > 1:
            raise RecipeError(f"new_tokens: {token!r}; give each once, in a shape that texts may hold, like [whisper]")
    processor.tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])


@torch.no_grad()
def grow_vocabulary(model: HiggsAudioForConditionalGeneration, size: int) -> None:
    """Gives the model's text table and text head `size` rows, in place; new ones are the mean of those there."""
    trunk = model.model
    table = nn.Embedding(size, trunk.embed_tokens.embedding_dim)
    copy_rows(trunk.embed_tokens.weight, table.weight)
    trunk.embed_tokens = table
    if model.text_lm_head is not None:
        head = nn.Linear(model.text_lm_head.in_features, size, bias=False)
        copy_rows(model.text_lm_head.weight, head.weight)
        model.text_lm_head = head
    trunk.text_config.vocab_size = size


def copy_rows(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies `source` into the first rows of `target`; the rest become their mean. Fewer rows are cut off."""
    num_rows = min(len(source), len(target))
    target[:num_rows].copy_(source[:num_rows])
    if len(target) > num_rows:
        target[num_rows:] = source.mean(0)


def check_read(model: HiggsAudioForConditionalGeneration, tokens: Sequence[str]) -> None:
    """Raises RecipeError where new tokens would not be trained: their rows are the mean of all others."""
    if tokens and not model.model.embed_tokens.weight.requires_grad:
        raise RecipeError(f"new_tokens={list(tokens)} are not trained: let `train` name 'embeddings', 'text' or 'all'")
