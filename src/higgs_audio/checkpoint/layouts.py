"""Layouts: the names of weights and config fields in published language models, converted in both directions.

`model_type` in config.json and the names of the weights identify a layout. There are four:

    boson         the original: nested config, names without "model.", heads under audio_decoder_proj
    early         the first transformers layout: the same config, "model." before the names of the Llama model
    transformers  the current one, model_type higgs_audio_v2: flat config, codebook size includes bos and eos
    native        ours: the names of transformers, the nested config

Source: bosonai/higgs-audio-v2-generation-3B-base before and after April 2026, and boson-ai/higgs-audio.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from higgs_audio import special_tokens
from higgs_audio.errors import CheckpointError, nearest

Fields = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The names of weights in one published layout of the language model.

    Attributes:
        name: the argument of `convert --to`.
        model_type: `model_type` in its config.json.
        signature: prefix of one weight's name that, with the `model_type`, identifies the layout.
        prefixes: pairs of name prefixes, in its files and in our module tree; the first that matches is replaced.
        sharded: whether its weights were published in several files.
    """

    name: str
    model_type: str
    signature: str
    prefixes: tuple[tuple[str, str], ...]
    sharded: bool = False

    def module_name(self, name: str) -> str | None:
        """Converts the name of a stored weight to its name in our module tree; None if that has no such weight."""
        name = _PART.sub(r"\1", name)
        return next((own + name[len(stored) :] for stored, own in self.prefixes if name.startswith(stored)), None)

    def stored_name(self, name: str) -> str:
        """Converts the name of a weight in our module tree to its name in files of this layout.

        >>> LAYOUTS["boson"].stored_name("model.norm.weight")
        'norm.weight'
        """
        return next(stored + name[len(own) :] for stored, own in self.prefixes if name.startswith(own))


# An embedding or head of which only the new rows were trained is stored in two parts, to be joined on dimension 0.
_PART = re.compile(r"(?<=\.)(?:embedding|linear)_(?:frozen|trainable)\.(weight)$")
_TRAINABLE = re.compile(r"_trainable\.weight$")
# Constants in some files that are not parameters of a module.
_IGNORED = re.compile(r"(audio_codebook_weights|rotary_emb\.(original_)?inv_freq)$")

_BACKBONE = tuple((f"{part}.", f"model.{part}.") for part in ("embed_tokens", "layers", "norm"))
_TOWER = tuple((f"{part}.", f"model.{part}.") for part in ("audio_tower", "audio_encoder_proj"))
_HEADS = tuple((f"audio_decoder_proj.{head}.", f"{head}.") for head in ("text_lm_head", "audio_lm_head"))
_CODES = ("audio_codebook_embeddings.", "model.embed_audio_tokens.embed_audio_tokens.")
# The names of a Llama model that was saved without its heads do not begin with "model.".
_NATIVE_PREFIXES = tuple((name, name) for name in ("model.", "text_lm_head.", "audio_lm_head."))
_NATIVE_PREFIXES += (*_BACKBONE, *_TOWER, ("embed_audio_tokens.", "model.embed_audio_tokens."))

BOSON = Layout("boson", "higgs_audio", "audio_codebook_embeddings.", (_CODES, *_HEADS, *_BACKBONE, *_TOWER), True)
EARLY = Layout(
    "early",
    "higgs_audio",
    "model.audio_codebook_embeddings.",
    ((f"model.{_CODES[0]}", _CODES[1]), *_HEADS, ("model.", "model.")),
    True,
)
TRANSFORMERS = Layout("transformers", "higgs_audio_v2", "embed_audio_tokens.", _NATIVE_PREFIXES)
NATIVE = Layout("native", "higgs_audio", "embed_audio_tokens.", _NATIVE_PREFIXES)
LAYOUTS = {layout.name: layout for layout in (BOSON, EARLY, TRANSFORMERS, NATIVE)}
MODEL_TYPES = tuple(dict.fromkeys(layout.model_type for layout in LAYOUTS.values()))  # of language models


def detect_layout(config: Mapping[str, Any], names: Iterable[str], where: str) -> Layout:
    """Returns the layout of a config.json and of the weights beside it.

    Args:
        config: the object in config.json.
        names: names of the weights.
        where: the source, such as the folder; begins the message of an error.

    Raises:
        CheckpointError: another model's config, or weights that do not belong to it.
    """
    check_model_type(config, where)
    signatures = {layout.signature for layout in (BOSON, EARLY) for name in names if name.startswith(layout.signature)}
    if any(name.removeprefix("model.").startswith(NATIVE.signature) for name in names):
        signatures.add(NATIVE.signature)
    candidates = [layout for layout in LAYOUTS.values() if layout.signature in signatures]
    matches = [layout for layout in candidates if layout.model_type == config["model_type"]]
    if len(matches) != 1:
        of_weights = " and ".join(layout.name for layout in candidates) or "unknown"
        raise CheckpointError(
            f"{where}: config.json has model_type {config['model_type']!r}, but the layout of the weights is "
            f"{of_weights}; give files of one layout: {', '.join(LAYOUTS)}"
        )
    return matches[0]


def check_model_type(config: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError unless a config.json describes this language model."""
    if config.get("model_type") not in MODEL_TYPES:
        given = str(config.get("model_type"))
        raise CheckpointError(f"{where}: config.json has model_type {given!r}; {nearest(given, MODEL_TYPES)}")


def match_names(names: Iterable[str], layout: Layout) -> tuple[dict[str, list[str]], list[str]]:
    """Matches the names of stored weights with those of our module tree.

    Returns:
        Name in our module tree -> the stored names of its parts, in order; and the stored names without a counterpart.

    Raises:
        CheckpointError: a weight with a missing part, or stored twice.
    """
    parts: dict[str, list[str]] = {}
    unknown = []
    for name in sorted(names, key=lambda name: (bool(_TRAINABLE.search(name)), name)):  # the frozen part comes first
        if _IGNORED.search(name):
            continue
        own = layout.module_name(name)
        if own is None:
            unknown.append(name)
        else:
            parts.setdefault(own, []).append(name)
    for own, stored in parts.items():
        _check_complete(layout.stored_name(own), stored)
    return parts, unknown


def _check_complete(weight: str, parts: list[str]) -> None:
    """Raises CheckpointError unless a weight is stored once, whole or as one frozen and one trainable part."""
    split = [name for name in parts if _PART.search(name)]
    if len(parts) != (2 if split else 1) or len(split) == 1:
        raise CheckpointError(
            f"{' and '.join(parts)} are not one complete {weight}; store it whole, or as a frozen and a trainable part"
        )


# Configs.

# Options of the original code that select another architecture: name -> the supported value, and the reason.
_SWITCHES: dict[str, tuple[Any, str]] = {
    "use_rq_transformer": (False, "no module of that name was ever published"),
    "use_audio_out_self_attention": (0, "a second attention for audio is not implemented"),
    "use_audio_out_embed_projector": (False, "a projection of the codes' embeddings is not implemented"),
    "audio_embed_avg": (False, "the codes' embeddings are summed"),
    "audio_decoder_proj_num_layers": (0, "heads are single matrices"),
    "use_delay_pattern": (True, "codes are written in the delay pattern"),
}
_ARCHITECTURES = {"boson": "HiggsAudioModel", "early": "HiggsAudioForConditionalGeneration"}
_TOKENS = {
    "audio_in_token": special_tokens.AUDIO_IN,
    "audio_out_token": special_tokens.AUDIO_OUT,
    "audio_bos_token": special_tokens.AUDIO_BOS,
    "audio_out_bos_token": special_tokens.AUDIO_OUT_BOS,
    "audio_eos_token": special_tokens.AUDIO_EOS,
}
_WITHOUT_TOWER = {"skip_audio_tower": True, "encode_whisper_embed": False, "encode_audio_in_tokens": True}
# Fields of the original config that repeat others or that its code never reads.
_REDUNDANT = re.compile(
    r"rq_transformer_\w+|audio_ffn_\w+|audio_(in|out|bos|out_bos|eos)_token|audio_tokenizer_config|hidden_size"
    r"|_name_or_path|transformers_version|architectures|model_type|torch_dtype"
)
# Fields of the Llama config that are read; the others in a nested config are defaults of transformers.
_TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
    *("attention_bias", "attention_dropout", "mlp_bias", "rope_parameters", "bos_token_id", "eos_token_id"),
)
# Our name -> transformers' name of fields with the same meaning.
_RENAMED = {
    "audio_num_codebooks": "num_codebooks",
    "audio_out_token_idx": "audio_token_id",
    "audio_out_bos_token_id": "audio_bos_token_id",
}
_SHARED = (
    *("audio_delay_token_id", "audio_stream_bos_id", "audio_stream_eos_id", "pad_token_id", "bos_token_id"),
    *("eos_token_id", "initializer_range", "dtype"),
)
# Fields that only our config has; in transformers' config they are stored under one key, which transformers ignores.
_OWN_KEY = "higgs_audio"
_OWN_FIELDS = ("audio_bos_token_id", "audio_eos_token_id", "audio_in_token_idx", "codec")

# The text config of the published checkpoint: Llama-3.2-3B.
PUBLISHED_TEXT_CONFIG: Fields = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
# transformers' config expresses the same rotary frequencies, bit for bit, by values 8 times smaller.
_ROPE_OF_TRANSFORMERS = {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}
_ROPE = {name: PUBLISHED_TEXT_CONFIG["rope_parameters"][name] for name in _ROPE_OF_TRANSFORMERS}
_POSITIONS_OF_TRANSFORMERS = 2048
_BOS, _EOS = PUBLISHED_TEXT_CONFIG["bos_token_id"], 128009  # <|begin_of_text|>, <|eot_id|>
_BOS_OF_TRANSFORMERS = 1  # an ordinary token: an error in the published config
# Defaults of transformers; it omits fields with these values from config.json.
_DEFAULTS_OF_TRANSFORMERS: Fields = {
    **PUBLISHED_TEXT_CONFIG,
    "max_position_embeddings": _POSITIONS_OF_TRANSFORMERS,
    "codebook_size": 1024,
    "num_codebooks": 8,
    "audio_token_id": 128016,
    "audio_bos_token_id": 128013,
    "audio_delay_token_id": 128014,
    "audio_stream_bos_id": 1024,
    "audio_stream_eos_id": 1025,
    "bos_token_id": _BOS_OF_TRANSFORMERS,
    "eos_token_id": _EOS,
    "pad_token_id": 128001,
    "rope_parameters": {**PUBLISHED_TEXT_CONFIG["rope_parameters"], **_ROPE_OF_TRANSFORMERS},
}


def read_fields(config: Mapping[str, Any], where: str) -> Fields:
    """Returns the fields of `HiggsAudioConfig` in a config.json of any layout.

    `audio_codebook_size` may include stream bos and stream eos or not; the id of stream bos decides.

    Args:
        config: the object in config.json.
        where: the source, such as the folder; begins the message of an error.

    Raises:
        CheckpointError: another model's config, fields that contradict one another, or an unsupported architecture.
    """
    check_model_type(config, where)
    flat = config["model_type"] == TRANSFORMERS.model_type
    fields = _from_flat(config) if flat else _from_nested(config, where)
    return {**fields, "audio_codebook_size": _codebook_size(fields, where)}


def write_fields(fields: Mapping[str, Any], layout: Layout, where: str) -> Fields:
    """Returns the content of a layout's config.json for the fields of a `HiggsAudioConfig`; inverts `read_fields`.

    Raises:
        CheckpointError: the layout cannot express the fields. The message begins with `where`.
    """
    text = {name: fields["text_config"][name] for name in _TEXT_FIELDS if name in fields["text_config"]}
    fields = {**fields, "text_config": {"model_type": "llama", **text}}
    if layout is TRANSFORMERS:
        return _to_flat(fields, where)
    return fields if layout is NATIVE else {**_to_boson(fields), "architectures": [_ARCHITECTURES[layout.name]]}


def _codebook_size(fields: Mapping[str, Any], where: str) -> int:
    """Returns the number of codes of a codebook, without stream bos and stream eos."""
    size = fields.get("audio_codebook_size", 1024)
    bos, eos = fields.get("audio_stream_bos_id", size), fields.get("audio_stream_eos_id", size + 1)
    if eos != bos + 1 or size not in (bos, bos + 2):
        raise CheckpointError(
            f"{where}: codebooks of {size} with stream bos {bos} and stream eos {eos}; these must be the two ids after "
            "the codes, and the size must include both of them or neither"
        )
    return bos


def _from_nested(config: Mapping[str, Any], where: str) -> Fields:
    """Reads the fields of a nested config: the original or ours, which has the same names."""
    for name, (supported, why) in _SWITCHES.items():
        if config.get(name, supported) not in (supported, None):
            raise CheckpointError(f"{where}: {name}={config[name]!r}; only {supported!r} can be loaded: {why}")
    fields = {name: value for name, value in config.items() if name not in _SWITCHES and not _REDUNDANT.fullmatch(name)}
    text = fields.get("text_config")
    if not isinstance(text, Mapping) or "vocab_size" not in text:
        raise CheckpointError(f"{where}: config.json has no text_config with the sizes of the Llama model; add it")
    fields["text_config"] = _text_fields(text)
    fields["dtype"] = config.get("dtype") or config.get("torch_dtype")
    if "eos_token_id" not in config:
        fields["eos_token_id"] = _EOS if text["vocab_size"] > _EOS else text.get("eos_token_id")
    _check_fast_forward(fields, where)
    return fields


def _check_fast_forward(fields: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError where the original lets audio skip the layers without a DualFFN: this is not supported."""
    listed, layers = fields.get("audio_dual_ffn_layers"), fields["text_config"]["num_hidden_layers"]
    fast = fields.get("audio_adapter_type", "dual_ffn_fast_forward") == "dual_ffn_fast_forward"
    if fast and listed is not None and (len(set(listed)) != layers or not set(listed) <= set(range(len(listed)))):
        raise CheckpointError(
            f"{where}: audio_adapter_type 'dual_ffn_fast_forward' with a DualFFN in {len(listed)} of {layers} layers; "
            "this type requires one in every layer, 'dual_ffn' does not"
        )


def _text_fields(text: Mapping[str, Any]) -> Fields:
    """Reads the fields of the Llama model from a nested or flat config; rotary ones go to `rope_parameters`."""
    fields = {name: text[name] for name in _TEXT_FIELDS if text.get(name) is not None}
    if "rope_parameters" not in fields and "rope_theta" in text:
        scaling = dict(text.get("rope_scaling") or {"rope_type": "default"})
        fields["rope_parameters"] = {"rope_theta": text["rope_theta"], **scaling}
    return fields


def _from_flat(config: Mapping[str, Any]) -> Fields:
    """Reads the fields of transformers' flat config, and corrects its errors in the number of positions and in bos."""
    given = {**_DEFAULTS_OF_TRANSFORMERS, **config}
    text = _text_fields(given)
    if _ROPE_OF_TRANSFORMERS.items() <= text["rope_parameters"].items():
        text["rope_parameters"] = {**text["rope_parameters"], **_ROPE}
        if text["max_position_embeddings"] == _POSITIONS_OF_TRANSFORMERS:
            text["max_position_embeddings"] = PUBLISHED_TEXT_CONFIG["max_position_embeddings"]
    fields = {name: given[name] for name in _SHARED if name in given}
    fields |= {own: given[name] for own, name in _RENAMED.items()}
    fields["audio_codebook_size"] = given["codebook_size"]
    if given["bos_token_id"] == _BOS_OF_TRANSFORMERS and given["vocab_size"] > _BOS:
        fields["bos_token_id"] = text["bos_token_id"] = _BOS
    own_fields = config.get(_OWN_KEY) or {}
    text |= own_fields.get("text_config") or {}
    return {**fields, **{name: own_fields[name] for name in _OWN_FIELDS if name in own_fields}, "text_config": text}


def _to_flat(fields: Mapping[str, Any], where: str) -> Fields:
    """Returns transformers' flat config; raises CheckpointError if it cannot express the fields."""
    layers = fields["text_config"]["num_hidden_layers"]
    if set(fields["audio_dual_ffn_layers"]) != set(range(layers)):
        raise CheckpointError(
            f"{where}: {len(fields['audio_dual_ffn_layers'])} of {layers} layers have a DualFFN; the transformers "
            "layout requires one in every layer. Convert to boson or native"
        )
    if not fields.get("skip_audio_tower", True):
        raise CheckpointError(f"{where}: the transformers layout has no audio tower; convert to boson or native")
    flat = {name: value for name, value in fields["text_config"].items() if name != "model_type"}
    flat |= {name: fields[name] for name in _SHARED if name in fields}
    flat |= {name: fields[own] for own, name in _RENAMED.items()}
    own_fields = {name: fields[name] for name in _OWN_FIELDS if fields.get(name) is not None}
    own_fields["text_config"] = {name: fields["text_config"].get(name) for name in ("bos_token_id", "eos_token_id")}
    return {
        "architectures": ["HiggsAudioV2ForConditionalGeneration"],
        "model_type": TRANSFORMERS.model_type,
        **flat,
        "codebook_size": fields["audio_codebook_size"] + 2,
        "tie_word_embeddings": False,
        _OWN_KEY: own_fields,
    }


def _to_boson(fields: Mapping[str, Any]) -> Fields:
    """Returns the original's config; fields that it lacks keep our names, which its code ignores."""
    text = dict(fields["text_config"])
    rope = dict(text.pop("rope_parameters"))
    text |= {"rope_theta": rope.pop("rope_theta"), "tie_word_embeddings": False}
    text["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    given = {name: value for name, value in fields.items() if name != "dtype" and value is not None}
    return {
        **_WITHOUT_TOWER,
        **_TOKENS,
        **given,
        "model_type": BOSON.model_type,
        "torch_dtype": fields.get("dtype"),
        "text_config": text,
        "hidden_size": text["hidden_size"],
        "audio_ffn_hidden_size": text["hidden_size"],
        "audio_ffn_intermediate_size": text["intermediate_size"],
        **{name: supported for name, (supported, _) in _SWITCHES.items()},
    }
