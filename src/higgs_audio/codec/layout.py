"""Reads and writes stored audio tokenizers. The content of `config.json` determines the layout, not a file name.

    boson         the original: nine numbers, and model.pth with weight-normalized weights under other names
    early         the first transformers layout: `higgs_audio_tokenizer` with `num_quantizers`; read only
    transformers  the current one: `higgs_audio_v2_tokenizer`, safetensors
    native        the layout of this package

The original implementation and transformers' encode differently: `boson` pads the acoustic branch by 320 samples,
`transformers` by 480 (`HiggsAudioTokenizerConfig.acoustic_padding`, which only `native` stores).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from higgs_audio.checkpoint import CONFIG_FILE, Checkpoint, as_checkpoint, atomic_folder
from higgs_audio.checkpoint.names import INDEX_FILE, PICKLE_FILE, SINGLE_FILE
from higgs_audio.checkpoint.weights import open_slices
from higgs_audio.codec import boson, huggingface
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.errors import CheckpointError, OptionError, first_line, join_names, nearest

SAFETENSORS = ("*.safetensors", INDEX_FILE)
# Layout -> patterns of the files that may hold its weights.
WEIGHT_PATTERNS = {
    "boson": (PICKLE_FILE,),
    "early": SAFETENSORS,
    "transformers": SAFETENSORS,
    "native": SAFETENSORS,
}
MODEL_TYPES = (huggingface.MODEL_TYPE, HiggsAudioTokenizerConfig.model_type)  # the original layout has none
WRITABLE_LAYOUTS = ("boson", "transformers", "native")
NATIVE_KEYS = ("num_codebooks", "acoustic_padding")  # keys of `config.json` that only the layout "native" has

State = dict[str, Tensor]
TokenizerClass = type[nn.Module]  # HiggsAudioTokenizer, whose module imports this one
Shapes = dict[str, tuple[int, ...]]


def detect_layout(config: Mapping[str, Any]) -> str:
    """Returns the layout of a `config.json` with this content.

    >>> detect_layout({"n_filters": 32, "D": 256, "ratios": [8, 5, 4, 2, 3], "semantic_techer": "hubert_base_general"})
    'boson'
    >>> detect_layout({"model_type": "higgs_audio_v2_tokenizer"})
    'transformers'

    Raises:
        CheckpointError: the config is not of an audio tokenizer but, for example, of a language model.
    """
    model_type = config.get("model_type")
    if model_type is None and all(key in config for key in boson.REQUIRED_KEYS):
        return "boson"
    if model_type == huggingface.MODEL_TYPE:
        return "transformers"
    if model_type == HiggsAudioTokenizerConfig.model_type:
        is_early = any(key in config for key in huggingface.EARLY_KEYS)
        return "early" if is_early and not any(key in config for key in NATIVE_KEYS) else "native"
    raise CheckpointError(
        f"config.json with model_type {model_type!r} is not of an audio tokenizer; known: {', '.join(MODEL_TYPES)}, "
        f"and the original layout without a model_type, with {', '.join(boson.REQUIRED_KEYS)}"
    )


def read(kind: TokenizerClass, folder: str | Path | Checkpoint) -> tuple[HiggsAudioTokenizerConfig, State]:
    """Reads a stored audio tokenizer of any layout.

    Args:
        kind: HiggsAudioTokenizer, which determines the expected tensors.
        folder: the folder of `config.json` and weights.

    Returns:
        The config, and the tensors under the names of `HiggsAudioTokenizer`. Tensors from safetensors stay mapped to
        their file.

    Raises:
        CheckpointError: the config is not of an audio tokenizer or has impossible values, a file is damaged, or tensors
            are missing, unexpected, of another shape or not floating-point. The message lists these tensors.
    """
    stored = as_checkpoint(folder)
    folder, content = stored.folder, stored.config
    layout = detect_layout(content)
    state = boson.read_pickle(folder / PICKLE_FILE) if layout == "boson" else _read_safetensors(stored)
    with _config_errors(folder):
        config = _parse_config(content, layout, state)
        shapes = expected_shapes(kind, config)
    if layout == "boson":
        return config, _from_boson(folder, config, state, shapes)
    if layout != "native":
        state = {name: value for name, value in state.items() if name != huggingface.UNUSED_TENSOR}
    check_tensors(folder, state, shapes)
    return config, state


def _read_safetensors(folder: Checkpoint) -> State:
    return {name: tensor[...] for name, tensor in open_slices(folder).items()}


@contextmanager
def _config_errors(folder: Path) -> Iterator[None]:
    """Converts every exception to a CheckpointError about `config.json`: wrong types and sizes raise many kinds."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} cannot be used: {' '.join(str(error).split())}") from error


def _parse_config(content: dict[str, Any], layout: str, state: State) -> HiggsAudioTokenizerConfig:
    if layout == "native":
        return HiggsAudioTokenizerConfig.from_dict(content)
    if layout == "boson":
        return boson.read_config(content)
    return huggingface.read_config(content, _count_codebooks(state))


def _count_codebooks(state: State) -> int:
    indices = [int(name.split(".")[2]) for name in state if name.startswith("quantizer.quantizers.")]
    return max(indices, default=-1) + 1


def expected_shapes(kind: TokenizerClass, config: HiggsAudioTokenizerConfig) -> Shapes:
    """Returns name -> shape of every tensor of a tokenizer with this config; allocates no memory for the tensors.

    >>> from higgs_audio.codec import HiggsAudioTokenizer
    >>> len(expected_shapes(HiggsAudioTokenizer, HiggsAudioTokenizerConfig()))
    527
    """
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}


def check_tensors(source: Path | str | Checkpoint, state: State, shapes: Shapes) -> None:
    """Checks that `state` has exactly the tensors of `shapes`.

    Args:
        source: where the tensors come from, for the message.
        state: name -> tensor.
        shapes: name -> expected shape.

    Raises:
        CheckpointError: lists tensors that are missing, unexpected, of another shape or not floating-point.
    """
    problems = {
        "missing": shapes.keys() - state.keys(),
        "unexpected": state.keys() - shapes.keys(),
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(shape)}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ],
        "not floating-point": [name for name, value in state.items() if not value.is_floating_point()],
    }
    found = [f"{len(names)} {problem} ({join_names(names)})" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{source} does not have the tensors of this audio tokenizer: {'; '.join(found)}")


def _from_boson(folder: Path, config: HiggsAudioTokenizerConfig, state: State, shapes: Shapes) -> State:
    """Checks the tensors of `model.pth` and converts them to the names and weights of `HiggsAudioTokenizer`."""
    stored_names = boson.stored_names(shapes, len(config.acoustic["downsampling_ratios"]))
    stored_shapes = boson.stored_shapes(shapes, stored_names)
    used = {
        name: value
        for name, value in state.items()
        if name in stored_shapes or not boson.UNUSED_TENSORS.fullmatch(name)
    }
    check_tensors(folder, used, stored_shapes)
    return {
        name: boson.fuse_weight_norm(*(state[part] for part in parts)) if len(parts) == 2 else state[parts[0]]
        for name, parts in stored_names.items()
    }


def write(
    kind: TokenizerClass,
    config: HiggsAudioTokenizerConfig,
    state: State,
    folder: str | Path,
    layout: str = "native",
) -> None:
    """Stores an audio tokenizer; `read` returns the same tensors, bit for bit.

    Args:
        kind: HiggsAudioTokenizer, which determines the expected tensors.
        config, state: as `read` returns them, or a tokenizer's `config` and `state_dict()`.
        folder: created if missing. Its files appear when all of them are complete, `config.json` last.
        layout: "native", "transformers" or "boson". "transformers" and "boson" do not store `acoustic_padding`;
            "boson" does not store HuBERT's training options either, and its weights are always float32.

    Raises:
        OptionError: an unknown layout.
        CheckpointError: the layout cannot represent the config, or the tensors do not fit the config; nothing is
            written.
    """
    if layout not in WRITABLE_LAYOUTS:
        raise OptionError(f"layout={layout!r}; {nearest(layout, WRITABLE_LAYOUTS)}")
    check_tensors("the state to write", state, expected_shapes(kind, config))
    json_files = _json_files(kind, config, state, layout)
    with atomic_folder(folder) as part:
        _write_weights(config, state, part, layout)
        for name, content in json_files.items():
            (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _json_files(
    kind: TokenizerClass, config: HiggsAudioTokenizerConfig, state: State, layout: str
) -> dict[str, dict[str, Any]]:
    """Returns file name -> content of the JSON files of a layout."""
    if layout == "boson":
        return {CONFIG_FILE: boson.write_config(config)}
    dtype = str(state["fc.weight"].dtype).removeprefix("torch.")
    if layout == "native":
        content = json.loads(config.to_json_string())
        return {CONFIG_FILE: content | {"architectures": [kind.__name__], "dtype": dtype}}
    extractor = huggingface.feature_extractor(config)
    return {CONFIG_FILE: huggingface.write_config(config, dtype), "preprocessor_config.json": extractor}


def _write_weights(config: HiggsAudioTokenizerConfig, state: State, folder: Path, layout: str) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if layout != "boson":
        save_file(state, folder / SINGLE_FILE, metadata={"format": "pt"})
        return
    stored: State = {}
    for name, parts in boson.stored_names(state, len(config.acoustic["downsampling_ratios"])).items():
        values = boson.split_weight_norm(state[name]) if len(parts) == 2 else (state[name].float(),)
        stored |= dict(zip(parts, values, strict=True))
    try:
        torch.save(stored, folder / PICKLE_FILE)
    except RuntimeError as error:  # torch's error for a full disk
        raise CheckpointError(f"{PICKLE_FILE} cannot be written: {first_line(error)}; free disk space") from error
