"""HiggsAudioPreTrainedModel: the base class of both models, with strict loading."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import Self, Unpack

from higgs_audio import checkpoint
from higgs_audio.checkpoint import FOLDER_OPTIONS, Checkpoint, layouts, open_checkpoint
from higgs_audio.checkpoint.weights import FLOATS, Weight, Weights, open_weights, read_dtype
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CheckpointError, OptionError, checkpoint_errors, first_line, join_names
from higgs_audio.model.adapters import is_adapter, load_with_adapter
from higgs_audio.model.layers import AudioEmbeddings, RMSNorm, RotaryEmbedding
from higgs_audio.model.load_options import PASSED_OPTIONS, LoadOptions, config_overrides
from higgs_audio.model.quantize import with_exclusions
from higgs_audio.model.tower import FrozenPositions, sinusoids

M = TypeVar("M", bound=PreTrainedModel)


class HiggsAudioPreTrainedModel(PreTrainedModel):
    """Base class of the models: tells transformers how to build, load, place and save them."""

    config: HiggsAudioConfig
    config_class = HiggsAudioConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DualFFNLayer", "WhisperEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False  # Trainer divides the loss by its accumulation steps itself
    _can_compile_fullgraph = False  # a pass over text and audio has data-dependent shapes; an audio step does not

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | Checkpoint | None,
        *args: Any,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Loads a checkpoint in any layout of `checkpoint.layouts`. Loading is strict: missing or unexpected weights
        and weights of another shape are errors.

        Args:
            pretrained_model_name_or_path: "nano", a folder, a hub repository "org/name", or a `Checkpoint`; also a
                folder with an adapter of PEFT, which is merged into its base model.
            *args: not supported; transformers passes model arguments here.
            **options: see `LoadOptions`. revision, cache_dir, token, local_files_only and force_download of a
                repository; subfolder; dtype (or torch_dtype; "auto", the default, is the checkpoint's own), device_map,
                attn_implementation ("sdpa", "eager", "flex_attention", "flash_attention_2"), quantization_config,
                output_loading_info, config and others, as in transformers; and fields of the config.

        Returns:
            The model in eval mode, with the sampling options of the checkpoint's `generation_config.json`; with
            output_loading_info=True, a tuple of the model and transformers' report. Host memory holds each weight once.
            A `quantization_config` does not quantize embeddings, heads and norms.

        Raises:
            CheckpointError: no such checkpoint, or files that do not fit; the message lists the weights.
            OptionError: an unknown option, or an option whose package is not installed.

        >>> model = HiggsAudioForConditionalGeneration.from_pretrained("nano", dtype="float32")  # doctest: +SKIP
        """
        if is_adapter(pretrained_model_name_or_path):
            folder = Path(pretrained_model_name_or_path)  # type: ignore[arg-type]
            return load_with_adapter(folder, lambda base: cls.from_pretrained(base, *args, **options))
        build = super().from_pretrained
        given: dict[str, Any] = {**options}
        if pretrained_model_name_or_path is None and isinstance(given.get("state_dict"), Mapping):
            return build(None, *args, **given)  # weights in memory, loaded as transformers does
        if args:
            raise OptionError(f"from_pretrained takes options by keyword; {args[0]!r:.60} was passed without one")
        if given.get("quantization_config") is not None:
            given["quantization_config"] = with_exclusions(given["quantization_config"])
        model, report = load_language_model(cls, build, pretrained_model_name_or_path, given)
        return (model, report) if given.get("output_loading_info") else model  # type: ignore[return-value]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, push_to_hub: bool = False, **options: Any
    ) -> None:
        """Writes the model in our layout, with its sampling options. Files in the folder are replaced only when all new
        ones are written.

        Args:
            save_directory: a folder, created if it does not exist.
            push_to_hub: whether to upload it as well, to `repo_id` or a repository with the folder's name.
            *args, **options: arguments of transformers' `save_pretrained`, such as `max_shard_size`.

        Raises:
            CheckpointError: `save_directory` is a file, or cannot be written.
        """
        with checkpoint.saved_model(self, Path(save_directory), push_to_hub, options) as part:
            super().save_pretrained(part, *args, **options)
            checkpoint.write_generation_config(getattr(self, "generation_config", None), part)

    def prepare_inputs_for_generation(self, input_ids: Any = None, **inputs: Any) -> dict[str, Any]:
        """Returns the arguments of `forward` unchanged; PEFT's causal language models require this method."""
        return {"input_ids": input_ids, **inputs}

    if TYPE_CHECKING:  # transformers' decorator hides the signature of `nn.Module.to`

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

    @property
    def device(self) -> torch.device:
        """The device of audio weights and of inputs; text weights may be elsewhere (`offload_text`)."""
        backbone: Any = getattr(self, self.base_model_prefix, self)
        return backbone.embed_audio_tokens.embed_audio_tokens.weight.device

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes matrices from N(0, initializer_range), norms to ones, and the buffers that are not stored."""
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, RotaryEmbedding):
            module.inv_freq.copy_(module.frequencies())
        elif isinstance(module, AudioEmbeddings):
            module.offsets.copy_(module.first_rows())
        elif isinstance(module, FrozenPositions):
            module.weight.copy_(sinusoids(*module.weight.shape))
        else:
            super()._init_weights(module)


def load_language_model(
    kind: type[M],
    build: Callable[..., Any],
    name: str | os.PathLike[str] | Checkpoint | None,
    options: Mapping[str, Any],
) -> tuple[M, Mapping[str, Any]]:
    """Loads a model of either class from any layout, and returns it with transformers' report.

    All names and shapes are compared with the model's before a weight is read, so that no model is partly loaded.

    Args:
        kind: `HiggsAudioModel` or `HiggsAudioForConditionalGeneration`.
        build: transformers' `from_pretrained`, bound to the class.
        name: as in `checkpoint.open_checkpoint`.
        options: the caller's options, see `LoadOptions`.

    Raises:
        CheckpointError: no such checkpoint, or files that do not fit; the message lists the weights.
        OptionError: an unknown option, or an option whose package is not installed.
    """
    overrides = config_overrides(options)
    source: Any = name
    opened = open_checkpoint(source, **{option: options[option] for option in FOLDER_OPTIONS if option in options})
    weights = open_weights(opened)
    config = options.get("config")
    if not isinstance(config, HiggsAudioConfig):
        config = read_config(config or opened, weights, **overrides)
    with _load_errors(f"{opened} does not load as {kind.__name__}"):
        passed = {option: options[option] for option in PASSED_OPTIONS if option in options}
        passed.pop("torch_dtype", None)
        passed |= {"dtype": _dtype(options, config, weights), "output_loading_info": True}
        if getattr(config, "quantization_config", None):  # other names and shapes, which transformers checks
            model, report = build(opened.folder, config=config, **passed)
        else:
            state = check_weights(kind, config, weights, opened)
            model, report = build(None, config=config, state_dict=state, **passed)
    _check_report(report, str(opened), kind)
    model.name_or_path = model.config.name_or_path = str(name)
    model._weight_conversions = None  # it is saved in our layout, whichever it was loaded from
    if kind.base_model_prefix in dict(model.named_children()):
        model.generation_config = options.get("generation_config") or checkpoint.read_generation_config(opened)
    return model, report


def read_config(folder: str | Path | Checkpoint, weights: Weights, **overrides: Any) -> HiggsAudioConfig:
    """Returns the config of a language model.

    The config of transformers' layout does not contain `use_text_head`: the names of the weights determine it.

    Args:
        folder: folder with config.json.
        weights: weights of the same checkpoint.
        **overrides: fields that replace fields of the file.

    Raises:
        CheckpointError: the file is missing or does not fit.
    """
    with checkpoint_errors(f"the config of {folder} does not load"):
        config = HiggsAudioConfig.from_pretrained(folder, **overrides)
    if weights.layout is layouts.TRANSFORMERS:
        config.use_text_head = "text_lm_head.weight" in weights
    return config


def _dtype(options: Mapping[str, Any], config: HiggsAudioConfig, weights: Weights) -> torch.dtype:
    """Returns the requested dtype; for "auto" or none the dtype of the config, else of the weights."""
    given = options.get("dtype") or options.get("torch_dtype") or "auto"
    if given == "auto":
        stored = (dtype for weight in weights.values() if (dtype := FLOATS.get(weight.get_dtype())))
        given = config.dtype or next(stored, torch.float32)
    return read_dtype(given)


def check_weights(
    kind: type[M], config: HiggsAudioConfig, weights: Weights, folder: Path | Checkpoint
) -> dict[str, Weight]:
    """Returns the unread weights by their names in a model of class `kind`.

    Raises:
        CheckpointError: weights that are missing, unexpected, of another shape or not floating-point, by their names in
            the files; or a config from which no model can be built.
    """
    with checkpoint_errors(f"{folder} has a config.json from which no model can be built"), torch.device("meta"):
        tensors = kind(copy.deepcopy(config)).state_dict()
    backbone = f"{kind.base_model_prefix}."
    prefix = "" if any(name.startswith(backbone) for name in tensors) else backbone  # a backbone's own names lack it
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in tensors.items()}
    given = {name: weight for name, weight in weights.items() if name.startswith(prefix)}  # a backbone has no heads
    stored_name = weights.layout.stored_name
    mismatched = [
        f"{stored_name(name)} {list(given[name].shape)} instead of {list(shapes[name])}"
        for name in shapes.keys() & given.keys()
        if given[name].shape != shapes[name]
    ]
    missing = [stored_name(name) for name in shapes.keys() - given.keys()]
    unexpected = [*weights.unknown, *(stored_name(name) for name in given.keys() - shapes.keys())]
    integers = [f"{stored_name(name)} {w.get_dtype()}" for name, w in given.items() if w.get_dtype() not in FLOATS]
    problems = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    _raise_problems({**problems, "not floating-point": integers}, str(folder), kind)
    return {name.removeprefix(prefix): weight for name, weight in given.items()}


def _check_report(report: Mapping[str, Any], folder: str, kind: type) -> None:
    """Raises CheckpointError for the problems in transformers' report."""
    problems = ("missing", "unexpected", "mismatched")
    _raise_problems({what: sorted(map(str, report.get(f"{what}_keys") or ())) for what in problems}, folder, kind)


def _raise_problems(problems: Mapping[str, list[str]], folder: str, kind: type) -> None:
    """Raises CheckpointError if any list of `problems` (kind of problem -> weights) is not empty."""
    listed = [
        f"{len(names)} {what} weights for {kind.__name__}: {join_names(names)}"
        for what, names in problems.items()
        if names
    ]
    if listed:
        raise CheckpointError(f"{folder} has {'; '.join(listed)}")


@contextmanager
def _load_errors(message: str) -> Iterator[None]:
    """Converts exceptions to CheckpointError, and an ImportError, for the package of an option, to OptionError."""
    with checkpoint_errors(message):
        try:
            yield
        except ImportError as error:
            raise OptionError(f"{message} with these options: {first_line(error)}") from error
