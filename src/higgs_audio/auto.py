"""Auto classes: our own, and the registration of our model types with those of transformers.

`import higgs_audio` imports neither transformers nor torch. Nevertheless the Auto classes of transformers resolve our
model types, whichever of the two packages is imported first: `install` adds a finder to `sys.meta_path` that resolves
imports of the two packages as Python does. After each import it registers our classes with the modules of Auto classes
that have been imported; there are four. It waits for the outermost import to end, because the modules around a nested
one are not initialized yet, and it removes itself after the fourth registration.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from higgs_audio.checkpoint import Checkpoint
    from higgs_audio.prompt.processor import HiggsAudioProcessor


class AutoProcessor:
    """Loads the processor of a checkpoint: a `HiggsAudioProcessor` for every layout of Higgs Audio (ours, the original
    one without processor_config.json, transformers' `higgs_audio_v2`), the processor of transformers for other models.

    >>> processor = AutoProcessor.from_pretrained("nano", device_map="cpu", torch_dtype="auto")
    >>> type(processor).__name__
    'HiggsAudioProcessor'
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "HiggsAudioProcessor":
        """Loads a processor, with the options and errors of `HiggsAudioProcessor.from_pretrained` or
        `transformers.AutoProcessor.from_pretrained`."""
        source = _open_folder(pretrained_model_name_or_path)
        if is_higgs_audio(source, **_folder_options(options)):
            from higgs_audio.prompt.processor import HiggsAudioProcessor

            return HiggsAudioProcessor.from_pretrained(source, **options)
        import transformers

        return transformers.AutoProcessor.from_pretrained(pretrained_model_name_or_path, **options)


class AutoTokenizer:
    """Loads the text tokenizer of a checkpoint: a fast one for Higgs Audio, that of transformers for any other model.

    >>> AutoTokenizer.from_pretrained("nano").decode([0])
    '<|begin_of_text|>'
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "PreTrainedTokenizerBase":
        """Loads a tokenizer, with the options of `transformers.AutoTokenizer.from_pretrained`.

        Raises:
            CheckpointError: a Higgs Audio checkpoint whose tokenizer does not load. For other models, transformers
                raises its own errors.
        """
        source = _open_folder(pretrained_model_name_or_path)
        if is_higgs_audio(source, **_folder_options(options)):
            from higgs_audio.prompt.loading import load_tokenizer

            return load_tokenizer(source, **options)
        import transformers

        return transformers.AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **options)


def _folder_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that select the folder."""
    from higgs_audio.checkpoint import FOLDER_OPTIONS

    return {name: options[name] for name in FOLDER_OPTIONS if name in options}


def _open_folder(name_or_path: str | Path) -> "str | Path | Checkpoint":
    """Returns the checkpoint in an existing folder, so that its files are read once; other names unchanged."""
    from higgs_audio.checkpoint import NAMES, as_checkpoint

    is_folder = str(name_or_path) not in NAMES and os.path.isdir(name_or_path)
    return as_checkpoint(name_or_path) if is_folder else name_or_path


def is_higgs_audio(name_or_path: "str | Path | Checkpoint", **options: Any) -> bool:
    """Whether a name, folder or repository holds a Higgs Audio language model or processor, according to its files.

    Args:
        name_or_path: as in `checkpoint.open_checkpoint`.
        **options: any of `checkpoint.FOLDER_OPTIONS`.

    Returns:
        False also for a repository that cannot be reached; transformers then reports the error.
    """
    from higgs_audio.checkpoint import CONFIG_FILE, NAMES, PROCESSOR_FILE
    from higgs_audio.checkpoint.layouts import MODEL_TYPES
    from higgs_audio.checkpoint.names import PROCESSOR_CLASSES

    if str(name_or_path) in NAMES or _read(name_or_path, CONFIG_FILE, options).get("model_type") in MODEL_TYPES:
        return True
    return _read(name_or_path, PROCESSOR_FILE, options).get("processor_class") in PROCESSOR_CLASSES


def _read(name_or_path: "str | Path | Checkpoint", file: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object in a JSON file of a folder or repository; an empty dict if there is none."""
    from transformers.utils import cached_file

    from higgs_audio.checkpoint import as_checkpoint
    from higgs_audio.checkpoint.checkpoint import read_json

    subfolder = options.get("subfolder") or ""
    try:
        if os.path.isdir(name_or_path):
            return as_checkpoint(name_or_path).inside(subfolder).read(file)
        path = cached_file(os.fspath(name_or_path), file, **{**options, "subfolder": subfolder})
        return read_json(Path(path)) if path else {}
    except (OSError, ValueError):  # CheckpointError is a ValueError
        return {}


# Registration with transformers.


def register_configs() -> None:
    """Registers the types `higgs_audio` and `higgs_audio_tokenizer` with AutoConfig."""
    from transformers import AutoConfig

    from higgs_audio.codec.config import HiggsAudioTokenizerConfig
    from higgs_audio.config import HiggsAudioConfig

    for config in (HiggsAudioConfig, HiggsAudioTokenizerConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models() -> None:
    """Registers the language model with AutoModel and AutoModelForTextToWaveform, as transformers does its own Higgs
    Audio model, and the audio tokenizer with AutoModel."""
    from transformers import AutoModel, AutoModelForTextToWaveform

    from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
    from higgs_audio.config import HiggsAudioConfig
    from higgs_audio.model.model import HiggsAudioForConditionalGeneration

    for kind in (AutoModel, AutoModelForTextToWaveform):
        kind.register(HiggsAudioConfig, HiggsAudioForConditionalGeneration, exist_ok=True)
    AutoModel.register(HiggsAudioTokenizerConfig, HiggsAudioTokenizer, exist_ok=True)


def register_tokenizer() -> None:
    """Registers the text tokenizer with AutoTokenizer."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from higgs_audio.config import HiggsAudioConfig

    AutoTokenizer.register(HiggsAudioConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)


def register_processor() -> None:
    """Registers the processor with AutoProcessor."""
    from transformers import AutoProcessor

    from higgs_audio.config import HiggsAudioConfig
    from higgs_audio.prompt.processor import HiggsAudioProcessor

    AutoProcessor.register(HiggsAudioConfig, HiggsAudioProcessor, exist_ok=True)


REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.modeling_auto": register_models,
    "transformers.models.auto.tokenization_auto": register_tokenizer,
    "transformers.models.auto.processing_auto": register_processor,
}


class _Finder:
    """A finder on `sys.meta_path` that registers our classes after imports of transformers and of this package."""

    def __init__(self) -> None:
        self._pending = dict(REGISTRATIONS)
        self._nesting = threading.local()  # number of imports that are under way in a thread

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the spec of Python's path-based finder, with a loader that calls `register` after the import; None
        for other packages."""
        if name.partition(".")[0] not in ("transformers", "higgs_audio"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader: Any) -> None:
        """Replaces `exec_module` of a loader, an object that loads one module only."""
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with self._nested():
                execute(module)
            self.register()

        loader.exec_module = exec_module

    @contextmanager
    def _nested(self) -> Iterator[None]:
        self._nesting.depth = self._depth + 1
        try:
            yield
        finally:
            self._nesting.depth -= 1

    @property
    def _depth(self) -> int:
        return getattr(self._nesting, "depth", 0)

    def register(self) -> None:
        """Registers our classes with the imported modules of Auto classes, unless an import is still under way."""
        if self._depth:
            return
        with self._nested():  # registering imports modules, which must not call this method again
            # Repeat until nothing is left to do: a registration may import another of the four modules.
            while any(self._register_with(module) for module in list(self._pending) if module in sys.modules):
                pass
        if not self._pending and self in sys.meta_path:
            sys.meta_path.remove(self)

    def _register_with(self, module: str) -> bool:
        """Registers with one module. Returns False if an import fails because a library that transformers needs is
        itself only partially imported; the next import tries again."""
        registration = self._pending.pop(module)
        try:
            registration()
        except ImportError:
            self._pending[module] = registration
            return False
        return True


def install() -> None:
    """Registers our classes with the Auto classes of transformers, which may be imported already or later.

    Does nothing if the finder is installed already: a program may have removed the package from `sys.modules` and
    imported it again.
    """
    if any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    finder.register()
