"""Adds tokens to the text tokenizer, such as a style or a sound in brackets, for a model to learn."""

from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from torch import nn

from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.text.markup import find_special_tokens


def add_tokens(processor: HiggsAudioProcessor, tokens: Sequence[str]) -> None:
    """Adds tokens to the processor's tokenizer, in place, unless it has them; each becomes one id wherever it occurs.

    They are text that users may type, not control tokens.

    Raises:
        RecipeError: a token is empty, given twice or like a special token, which texts may not contain; or the
            processor converts texts to phonemes.
    """
    if not tokens:
        return
    if processor.text_frontend != "none":
        raise RecipeError(
            f"new_tokens={list(tokens)}: this processor converts texts to {processor.text_frontend}, which does not "
            "keep tokens; train with text_frontend 'none'"
        )
    for token in tokens:
        if not token.strip() or find_special_tokens(token) or list(tokens).count(token) > 1:
            raise RecipeError(
                f"new_tokens contains {token!r}; give each token once, in a form that texts may contain, like [whisper]"
            )
    processor.tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])


@torch.no_grad()
def grow_vocabulary(model: HiggsAudioForConditionalGeneration, size: int) -> None:
    """Resizes text embeddings and text head to `size` rows, in place; new rows are the mean of the old ones."""
    backbone = model.model
    embeddings = nn.Embedding(size, backbone.embed_tokens.embedding_dim)
    copy_rows(backbone.embed_tokens.weight, embeddings.weight)
    backbone.embed_tokens = embeddings
    if model.text_lm_head is not None:
        head = nn.Linear(model.text_lm_head.in_features, size, bias=False)
        copy_rows(model.text_lm_head.weight, head.weight)
        model.text_lm_head = head
    backbone.text_config.vocab_size = size


def copy_rows(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies `source` into the first rows of `target` and their mean into the rest; excess rows are dropped."""
    num_rows = min(len(source), len(target))
    target[:num_rows].copy_(source[:num_rows])
    if len(target) > num_rows:
        target[num_rows:] = source.mean(0)


def check_trained(model: HiggsAudioForConditionalGeneration, tokens: Sequence[str]) -> None:
    """Raises RecipeError if the embeddings of new tokens are frozen: they would stay the mean of the old ones."""
    if tokens and not model.model.embed_tokens.weight.requires_grad:
        raise RecipeError(f"new_tokens={list(tokens)} are not trained: add 'embeddings', 'text' or 'all' to `train`")
