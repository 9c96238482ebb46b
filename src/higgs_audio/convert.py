"""convert: a checkpoint written again in another layout. Every tensor keeps its bits."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from higgs_audio import special_tokens
from higgs_audio.checkpoint.find import CODEC_FOLDER, GENERATION_FILE, resolve
from higgs_audio.checkpoint.layouts import EARLY, LAYOUTS, MODEL_TYPES, NATIVE, TRANSFORMERS, Layout, write_fields
from higgs_audio.checkpoint.saving import whole_folder
from higgs_audio.checkpoint.weights import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    Weight,
    Weights,
    open_weights,
    read_json,
)
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.codec import layout as codec_layout
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CheckpointError, OptionError, nearest
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.model.pretrained import check_weights, read_config
from higgs_audio.prompt.config import PROCESSOR_FILE, ProcessorConfig

SHARD_BYTES = 5_000_000_000  # of the original, which came in three files; the other layouts are one file
# Beside config and weights: what every layout has, spelled in the same way.
COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "voices.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"),
)


def convert(source: str | Path, destination: str | Path, to: str, revision: str | None = None) -> Path:
    """Writes a checkpoint in another layout: language model, tokenizer, processor, and the audio tokenizer inside it.

    Tensors keep their bits; partially frozen tables are joined. Of the other files, those that every layout has come
    along (`COPIED`). The folder appears when it is complete; a run that was killed can be run again. An audio tokenizer
    with a body that only this package has, as nano's, stays as it is.

    transformers knows no path inside a checkpoint: in its layout the processor names the audio tokenizer inside by its
    absolute path. Where the folder moves, `audio_tokenizer_name_or_path` in processor_config.json has to follow; this
    package's own processor finds the one inside wherever the folder is.

    Args:
        source: as in `checkpoint.resolve`; a language model or an audio tokenizer.
        destination: a folder that does not exist, or is empty; "." too.
        to: "boson", "early", "transformers" or "native".
        revision: of a repository.

    Returns:
        `destination`.

    Raises:
        CheckpointError: a source that does not load, a destination with something in it or that cannot be written,
            or a model that the layout has no word for. OptionError: no such layout.

    >>> convert("nano", "nano-for-transformers", to="transformers")  # doctest: +SKIP
    PosixPath('nano-for-transformers')
    """
    if to not in LAYOUTS:
        raise OptionError(f"no layout {to!r}; {nearest(to, LAYOUTS)}")
    target = Path(os.path.abspath(destination))
    if os.path.isfile(target) or (os.path.isdir(target) and os.listdir(target)):
        raise CheckpointError(f"{target} is there already and not empty; give a new folder")
    folder = resolve(source, revision)
    with whole_folder(target) as part:
        if read_json(folder / CONFIG_FILE).get("model_type") in MODEL_TYPES:
            _convert_model(folder, part, LAYOUTS[to], target)
        else:
            _convert_codec(folder, part, LAYOUTS[to])
    return Path(destination)


def _convert_model(folder: Path, part: Path, layout: Layout, destination: Path) -> None:
    weights = open_weights(folder)
    config = read_config(folder, weights)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"{folder} is quantized; convert the checkpoint that it was made from")
    check_weights(HiggsAudioForConditionalGeneration, config, weights, folder)
    _write_json(part / CONFIG_FILE, write_fields(_fields(config), layout, str(folder)))
    _write_generation_config(folder, part, config, layout)
    _write_processor_config(folder, part, config, layout, destination)
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, part / name)
    if (folder / CODEC_FOLDER).is_dir():
        _convert_codec(folder / CODEC_FOLDER, part / CODEC_FOLDER, layout)
    _write_weights(weights, part, layout)


def _fields(config: HiggsAudioConfig) -> dict[str, Any]:
    """The config's own fields; what transformers adds to every config is left out."""
    every = config.to_dict()
    names = (*HiggsAudioConfig.__annotations__, "dtype")
    return {
        "architectures": [HiggsAudioForConditionalGeneration.__name__],
        "model_type": NATIVE.model_type,
        **{name: every[name] for name in names if name in every},
    }


def _write_weights(weights: Weights, part: Path, layout: Layout) -> None:
    """One file, or for the original's layouts an index and files of at most `SHARD_BYTES`."""
    shards: list[dict[str, Weight]] = [{}]
    size = total = 0
    for name, weight in sorted(weights.items()):
        if layout.sharded and shards[-1] and size + weight.num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][layout.theirs(name)] = weight
        size, total = size + weight.num_bytes, total + weight.num_bytes
    if len(shards) == 1:
        _save(shards[0], part / SINGLE_FILE)
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _save(shard, part / file)
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    _write_json(part / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": places})


def _save(weights: Mapping[str, Weight], file: Path) -> None:
    """Tensors go from file to file as they lie there; tables in two parts alone pass through memory."""
    save_file({name: weight[...] for name, weight in weights.items()}, file, metadata={"format": "pt"})


def _write_generation_config(folder: Path, part: Path, config: HiggsAudioConfig, layout: Layout) -> None:
    """The sampling; transformers' loop also reads from it where to end, ours and the original's read the config."""
    file = folder / GENERATION_FILE
    fields = read_json(file) if file.is_file() else {}
    fields.pop("use_text_head", None)
    if layout is TRANSFORMERS:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        fields |= {**{name: getattr(config, name) for name in ids}, "use_text_head": config.use_text_head}
    if fields:
        _write_json(part / GENERATION_FILE, fields)


def _write_processor_config(
    folder: Path, part: Path, config: HiggsAudioConfig, layout: Layout, destination: Path
) -> None:
    """Ours; for transformers its own fields beside them, of which each reader takes what it knows."""
    sizes = {"audio_num_codebooks": config.audio_num_codebooks, "audio_codebook_size": config.audio_codebook_size}
    file = folder / PROCESSOR_FILE
    ours = ProcessorConfig.from_dict(read_json(file) if file.is_file() else sizes)
    inside = (folder / CODEC_FOLDER).is_dir()
    fields: dict[str, Any] = asdict(replace(ours, codec=CODEC_FOLDER) if inside else ours)
    if layout is TRANSFORMERS:
        codec = str(destination / CODEC_FOLDER) if inside else ours.codec  # it knows no path inside a checkpoint
        fields |= _processor_of_transformers(config, ours.sampling_rate, codec)
    _write_json(part / PROCESSOR_FILE, {"processor_class": "HiggsAudioProcessor", **fields})


def _processor_of_transformers(config: HiggsAudioConfig, sampling_rate: int, codec: str) -> dict[str, Any]:
    return {
        "processor_class": "HiggsAudioV2Processor",
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


def _convert_codec(folder: Path, part: Path, layout: Layout) -> None:
    """Early checkpoints name the audio tokenizer of the next layout; a body of our own has no layout but ours."""
    config, state = codec_layout.read(HiggsAudioTokenizer, folder)
    name = TRANSFORMERS.name if layout is EARLY else layout.name
    codec_layout.write(HiggsAudioTokenizer, config, state, part, name if config.body == "dac" else NATIVE.name)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
