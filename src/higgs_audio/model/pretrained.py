"""HiggsAudioPreTrainedModel: what transformers needs to build, place and save the model, and strict loading."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from higgs_audio import checkpoint
from higgs_audio.checkpoint import layouts
from higgs_audio.checkpoint.find import FOLDER_OPTIONS, resolve
from higgs_audio.checkpoint.weights import FLOATS, Weights, open_weights, read_dtype
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CheckpointError, OptionError, checkpoint_errors, first_line, nearest
from higgs_audio.model.layers import AudioEmbeddings, RMSNorm, RotaryEmbedding
from higgs_audio.model.quantize import keep_policy
from higgs_audio.model.tower import FrozenPositions, sinusoids

M = TypeVar("M", bound=PreTrainedModel)

# Options of transformers' `from_pretrained` that go through to it.
PASSED_OPTIONS = (
    *("attn_implementation", "device_map", "dtype", "torch_dtype", "max_memory", "offload_folder", "offload_buffers"),
    *("quantization_config", "output_loading_info", "distributed_config", "use_kernels", "kernel_config"),
)
LOAD_OPTIONS = (*PASSED_OPTIONS, "config", "generation_config")
# Accepted and without effect: weights are always safetensors, always strict, and no code comes with a checkpoint.
UNUSED_OPTIONS = (
    *("use_safetensors", "low_cpu_mem_usage", "trust_remote_code", "weights_only", "ignore_mismatched_sizes"),
    *("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs"),
)
LISTED = 20  # names of a complaint; a whole layout gone wrong would list 397


class HiggsAudioPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to build, load, place and save the model."""

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
    _can_compile_fullgraph = False  # the mixed pass has data-dependent shapes; the audio step has not

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Loads a checkpoint of any layout that `layouts` knows; every weight must be there, fit, and be asked for.

        Args:
            pretrained_model_name_or_path: "nano", a folder, or a hub repository "org/name".
            **options: revision, cache_dir, token, local_files_only and force_download of a repository; subfolder;
                dtype (or torch_dtype; "auto", the default, is the checkpoint's own), device_map, attn_implementation
                ("sdpa", "eager", "flex_attention", "flash_attention_2"), quantization_config, output_loading_info,
                config and the rest of `LOAD_OPTIONS`, as in transformers; and fields of the config.

        Returns:
            The model in eval mode, with the sampling of the checkpoint's `generation_config.json`. Host memory holds
            each weight once. A `quantization_config` leaves embeddings, heads and norms as they are.

        Raises:
            CheckpointError: no such checkpoint, or files that do not fit; the message lists the weights.
            OptionError: an unknown option, or one whose package is not installed.

        >>> model = HiggsAudioForConditionalGeneration.from_pretrained("nano", dtype="float32")  # doctest: +SKIP
        """
        build = super().from_pretrained
        if pretrained_model_name_or_path is None and isinstance(options.get("state_dict"), Mapping):
            return build(None, *args, **options)  # a model in memory, in transformers' own way
        if args:
            raise OptionError(f"from_pretrained takes options by keyword; {args[0]!r:.60} has none")
        if options.get("quantization_config") is not None:
            options["quantization_config"] = keep_policy(options["quantization_config"])
        return load_language_model(cls, build, pretrained_model_name_or_path, options)

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Writes our layout, sampling included; what was in the folder before stays until all files are written.

        Args:
            save_directory: a folder, made where there is none.
            push_to_hub: upload it as well, to `repo_id` or the folder's name.
            **options: of transformers' `save_pretrained`, such as `max_shard_size`.

        Raises:
            CheckpointError: `save_directory` is a file, or cannot be written.
        """
        with checkpoint.saved_model(self, save_directory, push_to_hub, options) as part:
            super().save_pretrained(part, *args, **options)
            checkpoint.write_generation_config(getattr(self, "generation_config", None), part)

    @property
    def device(self) -> torch.device:
        """Where audio is written, and where inputs belong; text weights may be elsewhere (`offload_text`)."""
        trunk: Any = getattr(self, self.base_model_prefix, self)
        return trunk.embed_audio_tokens.embed_audio_tokens.weight.device

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range) for matrices, ones for norms, and the buffers that no checkpoint holds."""
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


def load_language_model(kind: type[M], build: Callable[..., Any], name: str | Path, options: dict[str, Any]) -> Any:
    """What `from_pretrained` of the language model's two classes does: any layout, strict, tensor by tensor.

    Every name and shape is compared with the model's before a weight is read, so that nothing is half loaded.

    Args:
        kind: `HiggsAudioModel` or `HiggsAudioForConditionalGeneration`.
        build: transformers' `from_pretrained`, bound to the class.
        name: as in `resolve`.
        options: of the caller.

    Raises:
        CheckpointError: no such checkpoint, or files that do not fit; the message lists the weights.
        OptionError: an unknown option, or one whose package is not installed.
    """
    overrides = _check_options(options)
    folder = resolve(name, **{option: options[option] for option in FOLDER_OPTIONS if option in options})
    weights = open_weights(folder)
    config = options.get("config")
    if not isinstance(config, HiggsAudioConfig):
        config = read_config(config or folder, weights, **overrides)
    with _typed(f"{folder} does not load as {kind.__name__}"):
        passed = {option: options[option] for option in PASSED_OPTIONS if option in options}
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
        model.generation_config = options.get("generation_config") or checkpoint.read_generation_config(folder)
    return (model, report) if options.get("output_loading_info") else model


def read_config(folder: str | Path, weights: Weights, **overrides: Any) -> HiggsAudioConfig:
    """The config of a language model, and whether it has a text head, which transformers' config does not say."""
    with checkpoint_errors(f"the config of {folder} does not load"):
        config = HiggsAudioConfig.from_pretrained(folder, **overrides)
    if weights.layout is layouts.TRANSFORMERS:
        config.use_text_head = "text_lm_head.weight" in weights
    return config


def _check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of the config; complains about those that are nothing."""
    fields = set(HiggsAudioConfig.__dataclass_fields__)
    known = {*FOLDER_OPTIONS, *LOAD_OPTIONS, *UNUSED_OPTIONS}
    if unknown := sorted(set(options) - known - fields):
        public = [name for name in (*FOLDER_OPTIONS, *LOAD_OPTIONS) if name not in UNUSED_OPTIONS]
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
        stored = (dtype for weight in weights.values() if (dtype := FLOATS.get(weight.get_dtype())))
        given = config.dtype or next(stored, torch.float32)
    return read_dtype(given)


def check_weights(kind: type[M], config: HiggsAudioConfig, weights: Weights, folder: Path) -> dict[str, Any]:
    """Name in a model of this class -> unread weight.

    Raises:
        CheckpointError: weights that are missing, unexpected, of another shape or not floating-point, by the names that
            the files have; or sizes of which no model can be built.
    """
    with checkpoint_errors(f"{folder} has a config.json of which no model can be built"), torch.device("meta"):
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
    integers = [f"{theirs(name)} {w.get_dtype()}" for name, w in given.items() if w.get_dtype() not in FLOATS]
    complaints = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    _complain({**complaints, "not floating-point": integers}, str(folder), kind)
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
    """What goes wrong inside is an error of this package; a package that an option needs is the option's affair."""
    with checkpoint_errors(complaint):
        try:
            yield
        except ImportError as error:
            raise OptionError(f"{complaint} with these options: {first_line(error)}") from error
