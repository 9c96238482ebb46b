"""Reads a text tokenizer from a checkpoint's files, each of which is opened once."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import is_offline_mode
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from higgs_audio.checkpoint.checkpoint import Checkpoint
from higgs_audio.checkpoint.names import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# Fields of tokenizer_config.json: those that transformers passes to the class unchanged, and those that it replaces.
_KEPT = {
    *("backend", "clean_up_tokenization_spaces", "model_input_names", "model_max_length", "padding_side"),
    *_TOKENS,
}
_REPLACED = {"tokenizer_class", "is_local", "local_files_only"}
# Files that transformers merges into the two that every tokenizer has.
_MERGED = (
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates"),
    "tokenizer.model",
)


def read_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """Returns the same fast tokenizer as `PreTrainedTokenizerFast.from_pretrained` does for the checkpoint's folder.

    transformers opens tokenizer.json and tokenizer_config.json twice each. This function opens them once if they are
    in the form that transformers 5 writes for a tokenizer without a chat template. transformers loads all other forms,
    such as those of its earlier versions.

    Raises:
        CheckpointError: tokenizer_config.json contains no JSON object.
        Exception: any error of transformers or tokenizers for a damaged file; tokenizers raises a bare `Exception`.
    """
    fields = checkpoint.read_if_present(TOKENIZER_CONFIG_FILE)
    if not _is_plain(checkpoint, fields):
        return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
    tokenizer = Tokenizer.from_str(checkpoint.path(TOKENIZER_FILE).read_text(encoding="utf-8"))
    added = tokenizer.get_added_tokens_decoder()
    by_text: dict[Any, Any] = {token.content: token for token in added.values()}
    kept = {name: by_text.get(value, value) if name in _TOKENS else value for name, value in fields.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{name: value for name, value in kept.items() if name not in _REPLACED},
        vocab_file=None,
        name_or_path=str(checkpoint),
        is_local=True,
        local_files_only=is_offline_mode(),
        added_tokens_decoder=added,
    )


def _is_plain(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> bool:
    """Whether a tokenizer is in the form that transformers 5 writes, without a chat template."""
    known = fields and fields.keys() <= _KEPT | _REPLACED
    strings = all(isinstance(fields.get(name), str | None) for name in _TOKENS)
    return bool(known) and strings and not any(checkpoint.path(name).exists() for name in _MERGED)
