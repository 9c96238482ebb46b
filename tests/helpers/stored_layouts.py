"""Writes a language model in each published layout, independently of the table under test."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from higgs_audio import HiggsAudioConfig, HiggsAudioForConditionalGeneration

K, V = 8, 16
IDS = {
    "audio_bos_token_id": 306,
    "audio_eos_token_id": 303,
    "audio_out_bos_token_id": 302,
    "audio_delay_token_id": 307,
    "audio_in_token_idx": 300,
    "audio_out_token_idx": 301,
    "pad_token_id": 304,
    "bos_token_id": 305,
    "eos_token_id": 308,
}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 305,
    "eos_token_id": 309,
}
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
READ = tuple(name for name in SIZES if "token" not in name)  # the token ids of the backbone are not used
# config.json of the original layout, with small sizes. It has no fields for some of the token ids.
BOSON_CONFIG = {
    "_name_or_path": "model_initialization/x",
    "architectures": ["HiggsAudioModel"],
    "audio_adapter_type": "dual_ffn_fast_forward",
    "audio_bos_token": "<|audio_bos|>",
    "audio_codebook_size": V,
    "audio_decoder_proj_num_layers": 0,
    "audio_dual_ffn_layers": [0, 1],
    "audio_embed_avg": False,
    "audio_encoder_config": {"model_type": "higgs_audio_encoder", "d_model": 1280},
    "audio_eos_token": "<|audio_eos|>",
    "audio_eos_token_id": 303,
    "audio_ffn_hidden_size": 32,
    "audio_ffn_intermediate_size": 48,
    "audio_in_token": "<|AUDIO|>",
    "audio_in_token_idx": 300,
    "audio_num_codebooks": K,
    "audio_out_bos_token": "<|audio_out_bos|>",
    "audio_out_bos_token_id": 302,
    "audio_out_token": "<|AUDIO_OUT|>",
    "audio_out_token_idx": 301,
    "audio_stream_bos_id": V,
    "audio_stream_eos_id": V + 1,
    "audio_tokenizer_config": None,
    "encode_audio_in_tokens": True,
    "encode_whisper_embed": False,
    "hidden_size": 32,
    "model_type": "higgs_audio",
    "pad_token_id": 304,
    "rq_transformer_hidden_size": None,
    "rq_transformer_num_hidden_layers": 3,
    "skip_audio_tower": True,
    "text_config": {
        "_name_or_path": "x",
        "model_type": "llama",
        **SIZES,
        "max_position_embeddings": 131072,
        "num_beams": 1,
        "rope_scaling": LLAMA3,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "use_audio_out_embed_projector": False,
    "use_audio_out_self_attention": 0,
    "use_delay_pattern": True,
    "use_rq_transformer": False,
}
FLAT_CONFIG = {
    "architectures": ["HiggsAudioV2ForConditionalGeneration"],
    "model_type": "higgs_audio_v2",
    **SIZES,
    "max_position_embeddings": 2048,
    "num_codebooks": K,
    "codebook_size": V + 2,
    "audio_token_id": 301,
    "audio_bos_token_id": 302,
    "audio_delay_token_id": 307,
    "audio_stream_bos_id": V,
    "audio_stream_eos_id": V + 1,
    "pad_token_id": 304,
    "eos_token_id": 308,
    "dtype": "float32",
    "rope_parameters": {
        "rope_theta": 500000.0,
        **LLAMA3,
        "high_freq_factor": 0.5,
        "low_freq_factor": 0.125,
        "original_max_position_embeddings": 1024,
    },
}


def make_model(**fields) -> HiggsAudioForConditionalGeneration:
    """Returns a model with random weights, large enough for every position to have different logits."""
    text = {**SIZES, "max_position_embeddings": 131072, "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    config = HiggsAudioConfig(
        text_config=text,
        audio_num_codebooks=K,
        audio_codebook_size=V,
        audio_stream_bos_id=V,
        audio_stream_eos_id=V + 1,
        **{**IDS, **fields},
    )
    torch.manual_seed(0)
    model = HiggsAudioForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
            else:
                weight.copy_(1 + 0.1 * torch.randn_like(weight))
    return model


# The names of the layouts, written independently of the table under test.


def boson_name(name: str) -> str:
    if name.startswith(("text_lm_head", "audio_lm_head")):
        return f"audio_decoder_proj.{name}"
    return name.removeprefix("model.").replace("embed_audio_tokens.embed_audio_tokens", "audio_codebook_embeddings")


def early_name(name: str) -> str:
    return boson_name(name) if "head" in name else f"model.{boson_name(name)}"


NAMES = {"boson": boson_name, "early": early_name, "transformers": str, "native": str}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_layout(folder: Path, model: HiggsAudioForConditionalGeneration, layout: str) -> Path:
    """Writes the files of a layout like the program that defined it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {NAMES[layout](name): tensor.clone() for name, tensor in model.state_dict().items()}
    if layout == "native":
        write_json(folder / "config.json", {**json.loads(model.config.to_json_string()), "model_type": "higgs_audio"})
    else:
        write_json(folder / "config.json", FLAT_CONFIG if layout == "transformers" else BOSON_CONFIG)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(folder: Path, count: int = 3) -> Path:
    """Splits the single weight file of a folder into several with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def split(folder: Path) -> Path:
    """Splits each table of a folder into two parts, like training with frozen rows."""
    weights = load_file(folder / "model.safetensors")
    for table, kind in (
        ("embed_tokens", "embedding"),
        ("audio_decoder_proj.text_lm_head", "linear"),
        ("audio_decoder_proj.audio_lm_head", "linear"),
    ):
        whole = weights.pop(f"{table}.weight")
        weights[f"{table}.{kind}_frozen.weight"] = whole[:100].clone()
        weights[f"{table}.{kind}_trainable.weight"] = whole[100:].clone()
    weights["audio_codebook_weights"] = torch.ones(K) / K
    save_file(weights, folder / "model.safetensors")
    return folder


def change(folder: Path, **weights: Tensor | None) -> Path:
    """Adds, replaces or (None) removes weights; "__" in an argument's name stands for "."."""
    given = {name.replace("__", "."): tensor for name, tensor in weights.items()}
    old = load_file(folder / "model.safetensors")
    new = {name: tensor for name, tensor in {**old, **given}.items() if tensor is not None}
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def set_config(folder: Path, **fields) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, **fields})
    return folder


def assert_same_weights(loaded: torch.nn.Module, wanted: dict[str, Tensor]) -> None:
    given = loaded.state_dict()
    assert given.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(given[name], wanted[name])] == []


FORMS = {
    "boson": lambda folder, model: write_layout(folder, model, "boson"),
    "boson in shards": lambda folder, model: shard(write_layout(folder, model, "boson")),
    "boson, frozen tables": lambda folder, model: split(write_layout(folder, model, "boson")),
    "boson, frozen tables in shards": lambda folder, model: shard(split(write_layout(folder, model, "boson"))),
    "early": lambda folder, model: write_layout(folder, model, "early"),
    "transformers": lambda folder, model: write_layout(folder, model, "transformers"),
    "transformers in shards": lambda folder, model: shard(write_layout(folder, model, "transformers")),
    "native": lambda folder, model: write_layout(folder, model, "native"),
}
