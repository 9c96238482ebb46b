"""What a checkpoint holds, told from its configs, its tokenizer and the headers of its weights; nothing is loaded."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from higgs_audio import template
from higgs_audio.checkpoint import CODEC_FOLDER, count_parameters, num_bytes, read_voices
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CheckpointError
from higgs_audio.layouts import MODEL_TYPES
from higgs_audio.weights import CONFIG_FILE, read_json

Section = dict[str, str]

# Regular expressions for the names of weights; the first that is found counts.
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


def describe(folder: str | Path) -> dict[str, Section]:
    """Title -> name -> what there is to say, of a language model's folder or an audio tokenizer's.

    Raises:
        CheckpointError: files that are missing or damaged.
    """
    folder = Path(folder)
    kind = read_json(folder / CONFIG_FILE).get("model_type")
    if kind == HiggsAudioTokenizerConfig.model_type:
        return _codec_sections(folder)
    if kind not in MODEL_TYPES:
        allowed = ", ".join((*MODEL_TYPES, HiggsAudioTokenizerConfig.model_type))
        raise CheckpointError(f"{folder} is a model of type {kind!r}; allowed: {allowed}")
    sections = _model_sections(folder)
    codec = folder / CODEC_FOLDER
    return sections | (_codec_sections(codec) if codec.is_dir() else {})


def _model_sections(folder: Path) -> dict[str, Section]:
    config = _config(HiggsAudioConfig, folder)
    text = config.text_config
    architecture = {
        "layers": f"{text.num_hidden_layers}, of which {len(config.audio_dual_ffn_layers or ())} have a DualFFN",
        "width": f"{text.hidden_size}, feed-forward {text.intermediate_size}",
        "heads": f"{text.num_attention_heads}, of which {text.num_key_value_heads} have keys and values",
        "codebooks": f"{config.audio_num_codebooks} of {config.audio_codebook_size}, and 2 markers",
        "vocabulary": f"{text.vocab_size:,}",
        "size of all files": f"{num_bytes(folder) / 1e6:,.1f} MB",
    }
    voices = {name: entry["description"] or entry["profile"] for name, entry in read_voices(folder).items()}
    sections = {
        "language model": architecture,
        "parameters of the language model": _counts(folder, MODEL_PARTS),
        "special tokens": _special_tokens(folder),
        "voices": voices,
    }
    return {title: rows for title, rows in sections.items() if rows}


def _codec_sections(folder: Path) -> dict[str, Section]:
    config = _config(HiggsAudioTokenizerConfig, folder)
    rows = {
        "body": config.body,
        "sample rate": f"{config.sample_rate} Hz",
        "frames": f"{config.frame_rate:g} a second, of {config.hop_length} samples",
        "codebooks": f"{config.num_codebooks} of {config.codebook_size}",
    }
    return {"audio tokenizer": rows, "parameters of the audio tokenizer": _counts(folder, CODEC_PARTS)}


def _counts(folder: Path, parts: dict[str, str]) -> Section:
    counts = count_parameters(folder, parts)
    return {name: f"{count:,}" for name, count in counts.items()} | {"total": f"{sum(counts.values()):,}"}


def _special_tokens(folder: Path) -> Section:
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that loads: {error}") from error
    return {token: str(tokenizer.convert_tokens_to_ids(token)) for token in template.SPECIAL_TOKENS}


def _config(kind: type[Any], folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no config that loads: {error}") from error
