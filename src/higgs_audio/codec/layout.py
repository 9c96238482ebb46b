"""The layouts that audio tokenizers are stored in, told apart by what is in `config.json`, never by a name.

    boson         the original: nine numbers and model.pth; weights normalised, names of its own
    early         the first Hugging Face form: `higgs_audio_tokenizer` with `num_quantizers`; read only
    transformers  the current Hugging Face form: `higgs_audio_v2_tokenizer`, safetensors
    native        ours

A layout stands for an implementation, and codes are those of the implementation: `boson` pads the acoustic branch by
320 samples, `transformers` by 480 (`HiggsAudioTokenizerConfig.acoustic_padding`, which only `native` stores).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from higgs_audio.checkpoint.saving import whole_folder
from higgs_audio.checkpoint.weights import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, open_slices, read_json
from higgs_audio.codec import boson, huggingface
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.errors import CheckpointError, OptionError, first_line, nearest

# Layout -> the files that its weights may lie in.
WEIGHTS = {
    "boson": (boson.WEIGHTS_FILE,),
    "early": ("*.safetensors", INDEX_FILE),
    "transformers": ("*.safetensors", INDEX_FILE),
    "native": ("*.safetensors", INDEX_FILE),
}
MODEL_TYPES = (huggingface.MODEL_TYPE, HiggsAudioTokenizerConfig.model_type)  # the original has none
WRITTEN = ("boson", "transformers", "native")
LISTED = 12  # names in an error message
OWN_KEYS = ("num_codebooks", "acoustic_padding")  # of our config, and of no other

T = TypeVar("T")
State = dict[str, Tensor]
TokenizerClass = type[nn.Module]  # HiggsAudioTokenizer, which imports this module
Shapes = dict[str, tuple[int, ...]]


def recognise(config: Mapping[str, Any]) -> str:
    """The layout that a `config.json` with this content belongs to.

    >>> recognise({"n_filters": 32, "D": 256, "ratios": [8, 5, 4, 2, 3], "semantic_techer": "hubert_base_general"})
    'boson'
    >>> recognise({"model_type": "higgs_audio_v2_tokenizer"})
    'transformers'

    Raises:
        CheckpointError: none of them; a language model's config among others.
    """
    kind = config.get("model_type")
    if kind is None and all(key in config for key in boson.KEYS):
        return "boson"
    if kind == huggingface.MODEL_TYPE:
        return "transformers"
    if kind == HiggsAudioTokenizerConfig.model_type:
        early = any(key in config for key in huggingface.EARLY_KEYS) and not any(key in config for key in OWN_KEYS)
        return "early" if early else "native"
    raise CheckpointError(
        f"config.json of model_type {kind!r} is no audio tokenizer's; known: {', '.join(MODEL_TYPES)}, "
        f"and the original's without a model_type, with {', '.join(boson.KEYS)}"
    )


def read(kind: TokenizerClass, folder: str | Path) -> tuple[HiggsAudioTokenizerConfig, State]:
    """A stored audio tokenizer of any layout, by our names.

    Args:
        kind: HiggsAudioTokenizer, whose tensors are expected.
        folder: with `config.json` and weights. Safetensors stay in their file until they are used.

    Raises:
        CheckpointError: another config, a damaged file, or tensors that are missing, unexpected, of another shape or
            not floating-point, all of which are listed. Nothing is half read.
    """
    folder = Path(folder)
    content = read_json(folder / CONFIG_FILE)
    layout = recognise(content)
    state = boson.read_pickle(folder / boson.WEIGHTS_FILE) if layout == "boson" else _read_slices(folder)
    config = _from_config(folder, lambda: _translate(content, layout, state))
    shapes = _from_config(folder, lambda: expected(kind, config))
    if layout == "boson":
        return config, _from_boson(folder, config, state, shapes)
    if layout != "native":
        state = {name: value for name, value in state.items() if name != huggingface.UNUSED}
    check(folder, state, shapes)
    return config, state


def _read_slices(folder: Path) -> State:
    return {name: part[...] for name, part in open_slices(folder).items()}


def _from_config(folder: Path, make: Callable[[], T]) -> T:
    """What `make` gives; whatever a field of another type or size makes it raise is about the file."""
    try:
        return make()
    except Exception as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} cannot be used: {' '.join(str(error).split())}") from error


def _translate(content: dict[str, Any], layout: str, state: State) -> HiggsAudioTokenizerConfig:
    if layout == "native":
        return HiggsAudioTokenizerConfig.from_dict(content)
    if layout == "boson":
        return boson.read_config(content)
    return huggingface.read_config(content, _count_codebooks(state))


def _count_codebooks(state: State) -> int:
    numbers = [int(name.split(".")[2]) for name in state if name.startswith("quantizer.quantizers.")]
    return max(numbers, default=-1) + 1


def expected(kind: TokenizerClass, config: HiggsAudioTokenizerConfig) -> Shapes:
    """Our name -> shape of every tensor of a tokenizer of these sizes; nothing is allocated.

    >>> from higgs_audio.codec import HiggsAudioTokenizer
    >>> len(expected(HiggsAudioTokenizer, HiggsAudioTokenizerConfig()))
    527
    """
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}


def check(where: Path | str, state: State, wanted: Shapes) -> None:
    """Every wanted tensor and no other, each of its shape.

    Raises:
        CheckpointError: what `where` lacks or has too much, by name.
    """
    complaints = {
        "missing": wanted.keys() - state.keys(),
        "unexpected": state.keys() - wanted.keys(),
        "misshapen": [
            f"{name} {list(state[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in state and tuple(state[name].shape) != shape
        ],
        "not floating-point": [name for name, value in state.items() if not value.is_floating_point()],
    }
    found = [f"{len(names)} {what} ({_listed(names)})" for what, names in complaints.items() if names]
    if found:
        raise CheckpointError(f"{where} does not hold the tensors of this audio tokenizer: {'; '.join(found)}")


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return ", ".join(ordered[:LISTED]) + more


def _from_boson(folder: Path, config: HiggsAudioTokenizerConfig, state: State, shapes: Shapes) -> State:
    spelled = boson.names(shapes, len(config.acoustic["downsampling_ratios"]))
    wanted = boson.part_shapes(shapes, spelled)
    check(folder, {n: value for n, value in state.items() if n in wanted or not boson.UNUSED.fullmatch(n)}, wanted)
    return {
        name: boson.fuse(*(state[part] for part in parts)) if len(parts) == 2 else state[parts[0]]
        for name, parts in spelled.items()
    }


def write(
    kind: TokenizerClass,
    config: HiggsAudioTokenizerConfig,
    state: State,
    folder: str | Path,
    layout: str = "native",
) -> None:
    """Stores an audio tokenizer; `read` gives the same tensors, bit by bit.

    Args:
        kind: HiggsAudioTokenizer, whose tensors are expected.
        config, state: as `read` returns them, or a tokenizer's `config` and `state_dict()`.
        folder: made where it is missing. Files appear in it when all of them are complete, `config.json` last.
        layout: "native", "transformers" or "boson". What a layout cannot say is lost: `acoustic_padding` in both
            others, HuBERT's options of training in "boson", which is always float32.

    Raises:
        OptionError: another layout.
        CheckpointError: the config does not fit the layout, or the state the config; nothing is written.
    """
    if layout not in WRITTEN:
        raise OptionError(f"layout={layout!r}; {nearest(layout, WRITTEN)}")
    check("the state to write", state, expected(kind, config))
    documents = _documents(kind, config, state, layout)
    with whole_folder(folder) as part:
        _write_weights(config, state, part, layout)
        for name, content in documents.items():
            (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _documents(
    kind: TokenizerClass, config: HiggsAudioTokenizerConfig, state: State, layout: str
) -> dict[str, dict[str, Any]]:
    """JSON files of a layout, by name."""
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
    for name, parts in boson.names(state, len(config.acoustic["downsampling_ratios"])).items():
        values = boson.split(state[name]) if len(parts) == 2 else (state[name].float(),)
        stored |= dict(zip(parts, values, strict=True))
    try:
        torch.save(stored, folder / boson.WEIGHTS_FILE)
    except RuntimeError as error:  # a full disk, in torch's words
        raise CheckpointError(f"{boson.WEIGHTS_FILE} cannot be written: {first_line(error)}") from error
