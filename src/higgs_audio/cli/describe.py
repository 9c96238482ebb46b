"""Describes a checkpoint from its configs, its tokenizer and the headers of its weights."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs_audio import special_tokens
from higgs_audio.checkpoint import Checkpoint, as_checkpoint
from higgs_audio.checkpoint.find import num_bytes
from higgs_audio.checkpoint.layouts import MODEL_TYPES
from higgs_audio.checkpoint.weights import open_weights
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.codec import layout as codec_layout
from higgs_audio.errors import CheckpointError
from higgs_audio.model.pretrained import read_config
from higgs_audio.prompt.loading import load_tokenizer
from higgs_audio.speech.voices import read_voices

Section = dict[str, str]

# Regular expressions for the names of weights; the first match counts.
MODEL_PARTS = {
    r"\baudio_(tower|encoder_proj)\.": "audio tower",
    r"\baudio_mlp\.": "audio feed-forward",
    r"\bmlp\.": "text feed-forward",
    r"\bself_attn\.": "attention",
    r"norm\.weight$": "norms",
    r"\bembed_audio_tokens\.": "audio embeddings",
    r"\bembed_tokens\.": "text embeddings",
    r"\baudio_lm_head\.": "audio head",
    r"\btext_lm_head\.": "text head",
}
CODEC_PARTS = {
    r"^semantic_model\.": "semantic teacher",
    r"^(encoder|decoder)_semantic\.": "semantic branch",
    r"^acoustic_encoder\.": "acoustic encoder",
    r"^acoustic_decoder\.": "acoustic decoder",
    r"^(quantizer|fc\d?)\.": "quantizer",
}


def describe(folder: str | Path | Checkpoint) -> dict[str, Section]:
    """Describes the folder of a language model or an audio tokenizer, in any layout: title -> name -> value.

    Raises:
        CheckpointError: another kind of model, or missing or damaged files.
    """
    checkpoint = as_checkpoint(folder)
    kind = checkpoint.config.get("model_type")
    if kind in MODEL_TYPES:
        return _model_sections(checkpoint) | (_codec_sections(checkpoint.codec) if checkpoint.codec else {})
    if kind in (None, *codec_layout.MODEL_TYPES):
        return _codec_sections(checkpoint)
    allowed = ", ".join((*MODEL_TYPES, *codec_layout.MODEL_TYPES))
    raise CheckpointError(
        f"{checkpoint} is a model of type {kind!r}; allowed: {allowed}, and the original audio tokenizer"
    )


def _model_sections(checkpoint: Checkpoint) -> dict[str, Section]:
    weights = open_weights(checkpoint)
    config = read_config(checkpoint, weights)
    text: Any = config.text_config
    architecture = {
        "layout": weights.layout.name,
        "layers": f"{text.num_hidden_layers}, of which {len(config.audio_dual_ffn_layers or ())} have a DualFFN",
        "width": f"{text.hidden_size}, feed-forward {text.intermediate_size}",
        "heads": f"{text.num_attention_heads}, of which {text.num_key_value_heads} have keys and values",
        "codebooks": f"{config.audio_num_codebooks} of {config.audio_codebook_size}, plus stream bos and eos",
        "vocabulary": f"{text.vocab_size:,}",
        "size of all files": f"{num_bytes(checkpoint.folder) / 1e6:,.1f} MB",
    }
    voices = {name: entry["description"] or entry["profile"] for name, entry in read_voices(checkpoint).items()}
    sizes = {name: weight.numel for name, weight in weights.items()}
    sections = {
        "language model": architecture,
        "parameters of the language model": _counts(sizes, MODEL_PARTS),
        "special tokens": _special_tokens(checkpoint),
        "voices": voices,
    }
    return {title: rows for title, rows in sections.items() if rows}


def _codec_sections(checkpoint: Checkpoint) -> dict[str, Section]:
    config, state = codec_layout.read(HiggsAudioTokenizer, checkpoint)
    rows = {
        "layout": codec_layout.detect_layout(checkpoint.config),
        "acoustic model": config.body,
        "sample rate": f"{config.sample_rate} Hz",
        "frames": f"{config.frame_rate:g} per second, of {config.hop_length} samples",
        "codebooks": f"{config.num_codebooks} of {config.codebook_size}",
    }
    counts = _counts({name: value.numel() for name, value in state.items()}, CODEC_PARTS)
    return {"audio tokenizer": rows, "parameters of the audio tokenizer": counts}


def _counts(sizes: Mapping[str, int], parts: Mapping[str, str]) -> Section:
    counts = count_parts(sizes, parts)
    return {name: f"{count:,}" for name, count in counts.items()} | {"total": f"{sum(counts.values()):,}"}


def count_parts(sizes: Mapping[str, int], parts: Mapping[str, str]) -> dict[str, int]:
    """Counts the parameters of each part.

    Args:
        sizes: name of a weight -> number of its elements.
        parts: regular expression -> name of the part; the first match with a weight's name counts. Weights without a
            match count as "other".
    """
    counts: Counter[str] = Counter(dict.fromkeys(parts.values(), 0))
    for name, size in sizes.items():
        counts[next((part for pattern, part in parts.items() if re.search(pattern, name)), "other")] += size
    return {part: count for part, count in counts.items() if count}


def _special_tokens(checkpoint: Checkpoint) -> Section:
    tokenizer = load_tokenizer(checkpoint)
    return {token: str(tokenizer.convert_tokens_to_ids(token)) for token in special_tokens.SPECIAL_TOKENS}
