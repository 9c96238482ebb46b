"""Converts a checkpoint to another layout. Every tensor is preserved bit for bit."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from higgs_audio import special_tokens
from higgs_audio.checkpoint import Checkpoint, atomic_folder, open_checkpoint
from higgs_audio.checkpoint.layouts import EARLY, LAYOUTS, MODEL_TYPES, NATIVE, TRANSFORMERS, Layout, write_fields
from higgs_audio.checkpoint.names import (
    CODEC_FOLDER,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PROCESSOR_CLASS,
    PROCESSOR_CLASS_OF_TRANSFORMERS,
    PROCESSOR_FILE,
    SINGLE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    VOICES_FILE,
)
from higgs_audio.checkpoint.weights import Weight, Weights, open_weights, save_weights
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.codec import layout as codec_layout
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CheckpointError, OptionError, nearest
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.model.pretrained import check_weights, read_config
from higgs_audio.prompt.config import ProcessorConfig

SHARD_BYTES = 5_000_000_000  # largest weight file in the original layouts; the published model has three
# Files that are the same in every layout.
COPIED = (
    *(TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *(VOICES_FILE, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"),
)


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    revision: str | None = None,
    *,
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a checkpoint in another layout: language model, tokenizer, processor, and the audio tokenizer inside it.

    Tensors are preserved bit for bit; embeddings stored in a frozen and a trainable part are joined. Files that are the
    same in every layout are copied (`COPIED`). The folder appears when it is complete, so that a killed conversion can
    be repeated. An audio tokenizer that only this package supports, such as nano's, is written in our layout.

    transformers does not support paths relative to a checkpoint: in its layout, processor_config.json holds the
    absolute path of the audio tokenizer. If the folder moves, change `audio_tokenizer_name_or_path` there; the
    processor of this package finds the audio tokenizer in any case.

    Args:
        source: as in `checkpoint.open_checkpoint`; a language model or an audio tokenizer.
        destination: a folder that does not exist or is empty; may be ".".
        to: "boson", "early", "transformers" or "native".
        revision: branch, tag or commit of a repository.
        max_shard_bytes: maximum size of a weight file in the original layouts; the other layouts have one file.

    Returns:
        `destination`.

    Raises:
        CheckpointError: the source does not load, the destination is not empty or cannot be written, or the layout
            cannot express the model.
        OptionError: no such layout.

    >>> convert("nano", "nano-for-transformers", to="transformers")  # doctest: +SKIP
    PosixPath('nano-for-transformers')
    """
    if to not in LAYOUTS:
        raise OptionError(f"no layout {to!r}; {nearest(to, LAYOUTS)}")
    target = Path(os.path.abspath(destination))
    if os.path.isfile(target) or (os.path.isdir(target) and os.listdir(target)):
        raise CheckpointError(f"{target} exists and is not empty; give a new folder")
    checkpoint = open_checkpoint(source, revision)
    with atomic_folder(target) as part:
        if checkpoint.config.get("model_type") in MODEL_TYPES:
            _convert_model(checkpoint, part, LAYOUTS[to], target, max_shard_bytes)
        else:
            _convert_codec(checkpoint, part, LAYOUTS[to])
    return Path(destination)


def _convert_model(checkpoint: Checkpoint, part: Path, layout: Layout, destination: Path, max_shard_bytes: int) -> None:
    """Writes every file of a language model's checkpoint into `part`, which becomes `destination`."""
    weights = open_weights(checkpoint)
    config = read_config(checkpoint, weights)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"{checkpoint} is quantized; convert the checkpoint that it was quantized from")
    check_weights(HiggsAudioForConditionalGeneration, config, weights, checkpoint)
    _write_json(part / CONFIG_FILE, write_fields(_fields(config), layout, str(checkpoint)))
    _write_generation_config(checkpoint, part, config, layout)
    _write_processor_config(checkpoint, part, config, layout, destination)
    for name in filter(checkpoint.has, COPIED):
        shutil.copyfile(checkpoint.path(name), part / name)
    if checkpoint.codec is not None:
        _convert_codec(checkpoint.codec, part / CODEC_FOLDER, layout)
    _write_weights(weights, part, layout, max_shard_bytes)


def _fields(config: HiggsAudioConfig) -> dict[str, Any]:
    """The fields of `HiggsAudioConfig` without those that transformers adds to every config."""
    fields = config.to_dict()
    names = (*HiggsAudioConfig.__annotations__, "dtype")
    return {
        "architectures": [HiggsAudioForConditionalGeneration.__name__],
        "model_type": NATIVE.model_type,
        **{name: fields[name] for name in names if name in fields},
    }


def _write_weights(weights: Weights, part: Path, layout: Layout, max_shard_bytes: int) -> None:
    """Writes one file, or in the original layouts an index and files of at most `max_shard_bytes`."""
    shards: list[dict[str, Weight]] = [{}]
    size = total = 0
    for name, weight in sorted(weights.items()):
        if layout.sharded and shards[-1] and size + weight.num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][layout.stored_name(name)] = weight
        size, total = size + weight.num_bytes, total + weight.num_bytes
    if len(shards) == 1:
        save_weights(shards[0], part / SINGLE_FILE)
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_weights(shard, part / file)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    _write_json(part / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_generation_config(checkpoint: Checkpoint, part: Path, config: HiggsAudioConfig, layout: Layout) -> None:
    """Writes the sampling options, and for transformers the ids that end generation, which it reads from this file;
    this package and the original code read them from the config."""
    fields = checkpoint.read_if_present(GENERATION_FILE)
    fields.pop("use_text_head", None)
    if layout is TRANSFORMERS:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        fields |= {**{name: getattr(config, name) for name in ids}, "use_text_head": config.use_text_head}
    if fields:
        _write_json(part / GENERATION_FILE, fields)


def _write_processor_config(
    checkpoint: Checkpoint, part: Path, config: HiggsAudioConfig, layout: Layout, destination: Path
) -> None:
    """Writes the fields of this package, and in transformers' layout its own too; each package ignores the other's."""
    sizes = {"audio_num_codebooks": config.audio_num_codebooks, "audio_codebook_size": config.audio_codebook_size}
    ours = ProcessorConfig.from_dict(checkpoint.read(PROCESSOR_FILE) if checkpoint.has(PROCESSOR_FILE) else sizes)
    inside = checkpoint.codec is not None
    fields: dict[str, Any] = asdict(replace(ours, codec=CODEC_FOLDER) if inside else ours)
    if layout is TRANSFORMERS:
        codec = str(destination / CODEC_FOLDER) if inside else ours.codec
        fields |= _processor_of_transformers(config, ours.sampling_rate, codec)
    _write_json(part / PROCESSOR_FILE, {"processor_class": PROCESSOR_CLASS, **fields})


def _processor_of_transformers(config: HiggsAudioConfig, sampling_rate: int, codec: str) -> dict[str, Any]:
    """Returns the fields of transformers' processor_config.json; `codec` is a path or repository."""
    return {
        "processor_class": PROCESSOR_CLASS_OF_TRANSFORMERS,
        "audio_token": special_tokens.AUDIO_OUT,
        "audio_bos_token": special_tokens.AUDIO_OUT_BOS,
        "audio_eos_token": special_tokens.AUDIO_EOS,
        "audio_delay_token": special_tokens.AUDIO_DELAY,
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "audio_tokenizer": {
            "audio_tokenizer_class": "HiggsAudioV2TokenizerModel",
            "audio_tokenizer_name_or_path": codec,
        },
        "feature_extractor": {
            "feature_extractor_type": "DacFeatureExtractor",
            "feature_size": 1,
            "hop_length": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": sampling_rate,
        },
    }


def _convert_codec(checkpoint: Checkpoint, part: Path, layout: Layout) -> None:
    """Writes the audio tokenizer. The early layout shares the audio tokenizer layout of transformers; architectures
    other than "dac" exist in our layout only."""
    config, state = codec_layout.read(HiggsAudioTokenizer, checkpoint)
    name = TRANSFORMERS.name if layout is EARLY else layout.name
    codec_layout.write(HiggsAudioTokenizer, config, state, part, name if config.body == "dac" else NATIVE.name)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
