"""Names and paths of checkpoints to folders, strict loading, whole saving, and what a folder holds."""

import copy
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from higgs_audio import NANO, layouts
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CheckpointError, HiggsAudioError, OptionError, nearest
from higgs_audio.weights import CONFIG_FILE as CONFIG_FILE
from higgs_audio.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    Weight,
    Weights,
    open_slices,
    open_weights,
    prefers_index,
    read_index,
    read_json,
)

M = TypeVar("M", bound=PreTrainedModel)

NAMES = {"nano": NANO}
CODEC_FOLDER = "codec"
GENERATION_FILE = "generation_config.json"
VOICES_FILE = "voices.json"
DOWNLOADED = ("*.json", "*.jinja", "codec/*")  # what every checkpoint may need; weights are asked for by name
PICKLE_FILE = "model.pth"  # of the original audio tokenizer alone
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# Options of transformers' `from_pretrained` that go through to it.
LOAD_OPTIONS = (
    *("attn_implementation", "device_map", "dtype", "torch_dtype", "max_memory", "offload_folder", "offload_buffers"),
    *("quantization_config", "output_loading_info", "distributed_config", "use_kernels", "kernel_config"),
    *("config", "generation_config", "subfolder"),
)
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
# Accepted and without effect: weights are always safetensors, always strict, and no code comes with a checkpoint.
UNUSED_OPTIONS = (
    *("use_safetensors", "low_cpu_mem_usage", "trust_remote_code", "weights_only", "ignore_mismatched_sizes"),
    *("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs"),
)
LISTED = 20  # names of a complaint; a whole layout gone wrong would list 397
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def resolve(
    name_or_path: str | Path, revision: str | None = None, patterns: Sequence[str] | None = None, **hub: Any
) -> Path:
    """The folder of a checkpoint.

    Args:
        name_or_path: "nano", an existing folder, or a hub repository "org/name", which is downloaded once: its small
            files, and of its weights those that its config asks for.
        revision: branch, tag or commit of a repository; has no meaning for the others.
        patterns: of the files that are downloaded from a repository instead.
        **hub: cache_dir, token, local_files_only, force_download, as in huggingface_hub.

    Raises:
        CheckpointError: none of these, a folder without config.json, or a repository that cannot be had.

    >>> resolve("nano") == NANO  # doctest: +SKIP
    True
    """
    name = str(name_or_path)
    if name in NAMES:
        return _checked(NAMES[name], "this installation lacks the checkpoint that comes with the package")
    if name and Path(name).is_dir():
        return _checked(Path(name), f"{name!r} is a folder without {CONFIG_FILE}; give the folder of a checkpoint")
    if isinstance(name_or_path, str) and _REPOSITORY.fullmatch(name):
        return _checked(_download(name, revision, patterns, hub), f"the repository {name!r} holds no {CONFIG_FILE}")
    raise CheckpointError(f"no model {name!r}; {nearest(name, NAMES)}, a folder, or a hub repository 'org/name'")


def _checked(folder: Path, complaint: str) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(complaint)
    return folder


def _download(repository: str, revision: str | None, patterns: Sequence[str] | None, hub: Mapping[str, Any]) -> Path:
    """Config first, then the weights of its layout: the published repository holds those of two, 11.5 GB each."""
    try:
        small = list(patterns or DOWNLOADED)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=small, **hub))
        for names in [] if patterns else _weights_wanted(folder):
            snapshot_download(repository, revision=folder.name, allow_patterns=names, **hub)  # of the same commit
            if any((folder / name).is_file() for name in names):
                break
        return folder
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository!r} is neither a folder here nor a repository that can be downloaded now "
            f"({_first_line(error)}); without a network: {nearest(repository, NAMES)}"
        ) from error


def _weights_wanted(folder: Path) -> list[list[str]]:
    """Sets of weight files that the downloaded small files ask for, the wanted one first."""
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    several = [sorted(set(read_index(folder).values()))] if (folder / INDEX_FILE).is_file() else []
    if several and prefers_index(config):
        return several
    return [[SINGLE_FILE], *several, *([] if "model_type" in config else [[PICKLE_FILE]])]


# Loading.


def load(kind: type[M], folder: str | Path, **options: Any) -> M:
    """`kind.from_pretrained(folder)`, where every weight must be there, fit, and be asked for; in eval mode.

    Args:
        kind: a model class of this package.
        folder: as `resolve` returns it.
        **options: of transformers' `from_pretrained`, such as `dtype`.

    Raises:
        CheckpointError: no safetensors file, a damaged one, or weights that are missing, unknown or of another shape.
    """
    with _typed(f"{folder} does not load as {kind.__name__}"):
        loaded: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    model, report = loaded
    _check_report(report, f"{folder}", kind)
    return cast(M, model.eval())


def load_language_model(kind: type[M], build: Callable[..., Any], name: str | Path, options: dict[str, Any]) -> Any:
    """What `from_pretrained` of the language model's two classes does: any layout, strict, tensor by tensor.

    Every name and shape is compared with the model's before a weight is read, so that nothing is half loaded.

    Args:
        kind: `HiggsAudioModel` or `HiggsAudioForConditionalGeneration`.
        build: transformers' `from_pretrained`, bound to the class.
        name: as in `resolve`.
        options: of the caller.

    Raises:
        CheckpointError: as `load`; the message lists the weights. OptionError: an unknown option, or one whose package
            is not installed.
    """
    overrides = _check_options(options)
    folder = resolve(name, **{option: options[option] for option in HUB_OPTIONS if option in options})
    folder = folder / (options.get("subfolder") or "")
    weights = open_weights(folder)
    config = options.get("config")
    if not isinstance(config, HiggsAudioConfig):
        config = read_config(config or folder, weights, **overrides)
    with _typed(f"{folder} does not load as {kind.__name__}"):
        passed = {option: options[option] for option in LOAD_OPTIONS[:-3] if option in options}
        passed.pop("torch_dtype", None)
        passed |= {"dtype": _dtype(options, config, weights), "output_loading_info": True}
        if getattr(config, "quantization_config", None):  # names and shapes of its own: transformers' affair
            model, report = build(folder, config=config, **passed)
        else:
            state = check_weights(kind, config, weights, folder)
            model, report = build(None, config=config, state_dict=state, **passed)
    _check_report(report, str(folder), kind)
    model.name_or_path = model.config.name_or_path = str(name)
    model._weight_conversions = None  # it is saved in our layout, wherever it came from
    if kind.base_model_prefix in dict(model.named_children()):
        model.generation_config = options.get("generation_config") or read_generation_config(folder)
    return (model, report) if options.get("output_loading_info") else model


def read_config(folder: str | Path, weights: Weights, **overrides: Any) -> HiggsAudioConfig:
    """The config of a language model, and whether it has a text head, which transformers' config does not say."""
    with _typed(f"the config of {folder} does not load"):
        config = HiggsAudioConfig.from_pretrained(folder, **overrides)
    if weights.layout is layouts.TRANSFORMERS:
        config.use_text_head = "text_lm_head.weight" in weights
    return config


def _check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of the config; complains about those that are nothing."""
    fields = set(HiggsAudioConfig.__dataclass_fields__)
    known = {*HUB_OPTIONS, *LOAD_OPTIONS, *UNUSED_OPTIONS}
    if unknown := sorted(set(options) - known - fields):
        public = [name for name in (*HUB_OPTIONS, *LOAD_OPTIONS) if name not in UNUSED_OPTIONS]
        raise OptionError(f"from_pretrained has no option {unknown[0]!r}; {nearest(unknown[0], public)}, config fields")
    attention = options.get("attn_implementation")
    offered = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if isinstance(attention, str) and "/" not in attention and attention not in offered:
        raise OptionError(f"attn_implementation={attention!r}; {nearest(attention, offered)}")
    return {name: value for name, value in options.items() if name in fields - known}


def _dtype(options: Mapping[str, Any], config: HiggsAudioConfig, weights: Weights) -> torch.dtype:
    """The dtype asked for; with "auto" or none that of the config, else that of the weights."""
    given = options.get("dtype") or options.get("torch_dtype") or "auto"
    if given == "auto":
        stored = (dtype for weight in weights.values() if (dtype := _FLOATS.get(weight.get_dtype())))
        given = config.dtype or next(stored, torch.float32)
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        names = ["auto", *(str(known).removeprefix("torch.") for known in _FLOATS.values())]
        raise OptionError(f"dtype={given!r}; {nearest(str(given), names)}")
    return dtype


def check_weights(kind: type[M], config: HiggsAudioConfig, weights: Weights, folder: Path) -> dict[str, Any]:
    """Name in a model of this class -> unread weight.

    Raises:
        CheckpointError: weights that are missing, unexpected or of another shape, by the names that the files have.
    """
    with torch.device("meta"):
        tensors = kind(copy.deepcopy(config)).state_dict()
    trunk = f"{kind.base_model_prefix}."
    prefix = "" if any(name.startswith(trunk) for name in tensors) else trunk  # what a trunk's names lack
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in tensors.items()}
    given = {name: weight for name, weight in weights.items() if name.startswith(prefix)}  # a trunk leaves the heads
    theirs = weights.layout.theirs
    mismatched = [
        f"{theirs(name)} {list(given[name].shape)} instead of {list(shapes[name])}"
        for name in shapes.keys() & given.keys()
        if given[name].shape != shapes[name]
    ]
    missing = [theirs(name) for name in shapes.keys() - given.keys()]
    unexpected = [*weights.unknown, *(theirs(name) for name in given.keys() - shapes.keys())]
    _complain({"missing": missing, "unexpected": unexpected, "mismatched": mismatched}, str(folder), kind)
    return {name.removeprefix(prefix): weight for name, weight in given.items()}


def _check_report(report: Mapping[str, Any], folder: str, kind: type) -> None:
    """The same complaints, from what transformers reports."""
    kinds = ("missing", "unexpected", "mismatched")
    _complain({what: sorted(map(str, report.get(f"{what}_keys") or ())) for what in kinds}, folder, kind)


def _complain(found: Mapping[str, list[str]], folder: str, kind: type) -> None:
    listed = [
        f"{len(names)} {what} weights for {kind.__name__}: {', '.join(sorted(names)[:LISTED])}"
        + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
        for what, names in found.items()
        if names
    ]
    if listed:
        raise CheckpointError(f"{folder} has {'; '.join(listed)}")


@contextmanager
def _typed(complaint: str) -> Iterator[None]:
    """What goes wrong inside is an error of this package."""
    try:
        yield
    except HiggsAudioError:
        raise
    except ImportError as error:
        raise OptionError(f"{complaint} with these options: {_first_line(error)}") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{complaint}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


# Saving.


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; its files come into `folder` when all of them are written.

    When something goes wrong before, `folder` is what it was. Weights that an earlier save left there are removed.

    Raises:
        CheckpointError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        _move_in(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move_in(part: Path, folder: Path) -> None:
    """Files of `part` into `folder`, config.json last."""
    names = sorted((path.name for path in part.iterdir()), key=lambda name: (name == CONFIG_FILE, name))
    if not names:
        return
    if not folder.exists():
        os.replace(part, folder)
        return
    for name in names:
        os.replace(part / name, folder / name)
    if INDEX_FILE in names or SINGLE_FILE in names:
        for old in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE_FILE, folder / INDEX_FILE):
            if old.name not in names:
                old.unlink(missing_ok=True)


def write_generation_config(sampling: GenerationConfig | None, folder: Path) -> None:
    """Writes generation_config.json, where there is something to write."""
    if sampling is not None:
        (folder / GENERATION_FILE).write_text(sampling.to_json_string(), encoding="utf-8")


# What a folder holds.


def read_voices(folder: str | Path) -> dict[str, dict[str, str]]:
    """The voices that a checkpoint knows by name, in the file's order: name -> {"profile": ..., "description": ...}.

    `profile` is the text that the model knows the voice by, `description` is for people. None without voices.json.

    Raises:
        CheckpointError: the file is not of that form.
    """
    path = Path(folder) / VOICES_FILE
    if not path.is_file():
        return {}
    voices = read_json(path)
    if not all(name and _is_voice(entry) for name, entry in voices.items()):
        raise CheckpointError(f'{path} must be like {{"ava": {{"profile": "Ava", "description": "..."}}}}')
    return {name: {"description": "", **entry} for name, entry in voices.items()}


def _is_voice(entry: Any) -> bool:
    """Strings throughout, the profile one line among them."""
    texts = isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
    return texts and len(entry.get("profile", "").splitlines()) == 1


def read_generation_config(folder: str | Path) -> GenerationConfig | None:
    """The sampling that goes with a checkpoint; None without generation_config.json.

    Raises:
        CheckpointError: the file does not load.
    """
    path = Path(folder) / GENERATION_FILE
    try:
        return GenerationConfig.from_pretrained(folder) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} does not load: {_first_line(error)}") from error


def count_parameters(folder: str | Path, parts: dict[str, str]) -> dict[str, int]:
    """Numbers in the weight files of a folder by part, read from their headers.

    Args:
        folder: of a checkpoint; a language model's weights go by our names, whatever the layout.
        parts: regular expression -> name of the part; the first one found in a weight's name counts. A weight that
            none fits counts under "other".

    Raises:
        CheckpointError: no safetensors file, or a damaged one.
    """
    counts: Counter[str] = Counter(dict.fromkeys(parts.values(), 0))
    for name, size in _sizes(Path(folder)).items():
        counts[next((part for pattern, part in parts.items() if re.search(pattern, name)), "other")] += size
    return {part: count for part, count in counts.items() if count}


def _sizes(folder: Path) -> dict[str, int]:
    """Weight -> how many numbers it has."""
    if read_json(folder / CONFIG_FILE).get("model_type") in layouts.MODEL_TYPES:
        return {name: weight.numel for name, weight in open_weights(folder).items()}
    return {name: Weight((part,)).numel for name, part in open_slices(folder).items()}


def num_bytes(folder: str | Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
