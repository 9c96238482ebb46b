"""Auto classes: our own, and transformers' own for our model types.

`import higgs_audio` imports neither transformers nor torch, and still, whichever of the two is imported first, the Auto
classes of transformers resolve our model types. Our classes can be registered only where theirs exist, so `install`
puts a finder before the others: it finds nothing by itself, but looks, whenever an import of a part of transformers or
of this package is over, which of the four modules of Auto classes have come, and registers with them. An import inside
such an import is too early: what surrounds it is half a module. The finder leaves once all four have been served.
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

    from higgs_audio.prompt.processor import HiggsAudioProcessor

MODEL_TYPES = ("higgs_audio", "higgs_audio_v2")  # language models: ours and Boson's, and transformers' own
PROCESSOR_CLASSES = ("HiggsAudioProcessor", "HiggsAudioV2Processor")
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "processor_config.json"


class AutoProcessor:
    """The processor of a checkpoint: a `HiggsAudioProcessor` for every layout of Higgs Audio (ours, the original one
    without processor_config.json, transformers' `higgs_audio_v2`), and what transformers has for any other.

    >>> processor = AutoProcessor.from_pretrained("nano", device_map="cpu", torch_dtype="auto")
    >>> type(processor).__name__
    'HiggsAudioProcessor'
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "HiggsAudioProcessor":
        """See `HiggsAudioProcessor.from_pretrained`, or `transformers.AutoProcessor`, for options and errors."""
        if is_ours(pretrained_model_name_or_path, **_place(options)):
            from higgs_audio.prompt.processor import HiggsAudioProcessor

            return HiggsAudioProcessor.from_pretrained(pretrained_model_name_or_path, **options)
        import transformers

        return transformers.AutoProcessor.from_pretrained(pretrained_model_name_or_path, **options)


class AutoTokenizer:
    """The text tokenizer of a checkpoint, always the fast one for Higgs Audio; what transformers has for any other.

    >>> AutoTokenizer.from_pretrained("nano").decode([0])
    '<|begin_of_text|>'
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "PreTrainedTokenizerBase":
        """See `transformers.AutoTokenizer` for options. CheckpointError: no such checkpoint of ours."""
        if is_ours(pretrained_model_name_or_path, **_place(options)):
            from higgs_audio.prompt.loading import load_tokenizer

            return load_tokenizer(pretrained_model_name_or_path, **options)
        import transformers

        return transformers.AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **options)


def _place(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say which files are meant."""
    from higgs_audio.checkpoint.find import FOLDER_OPTIONS

    return {name: options[name] for name in FOLDER_OPTIONS if name in options}


def is_ours(name_or_path: str | Path, **place: Any) -> bool:
    """Whether a name, folder or repository holds a Higgs Audio language model or processor, told by its files.

    `place` is of `checkpoint.FOLDER_OPTIONS`, as in `from_pretrained`. A repository that cannot be reached is not ours:
    transformers then says what is the matter with it.
    """
    from higgs_audio.checkpoint.find import NAMES

    if str(name_or_path) in NAMES:
        return True
    found = _read(name_or_path, CONFIG_FILE, place).get("model_type")
    return found in MODEL_TYPES or (
        _read(name_or_path, PROCESSOR_FILE, place).get("processor_class") in PROCESSOR_CLASSES
    )


def _read(name_or_path: str | Path, file: str, place: Mapping[str, Any]) -> dict[str, Any]:
    """One JSON file of a folder or repository; empty where there is none."""
    import json

    from transformers.utils import cached_file

    folder, inside = Path(name_or_path), place.get("subfolder") or ""
    try:
        if folder.is_dir():
            path: str | Path | None = folder / inside / file
        else:
            path = cached_file(os.fspath(name_or_path), file, **{**place, "subfolder": inside})
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# Registration with transformers.


def register_configs() -> None:
    """AutoConfig: `higgs_audio`, `higgs_audio_tokenizer`."""
    from transformers import AutoConfig

    from higgs_audio.codec.config import HiggsAudioTokenizerConfig
    from higgs_audio.config import HiggsAudioConfig

    for config in (HiggsAudioConfig, HiggsAudioTokenizerConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models() -> None:
    """AutoModel and AutoModelForTextToWaveform: the model that speaks, as transformers has it for its own Higgs Audio;
    AutoModel for the audio tokenizer too."""
    from transformers import AutoModel, AutoModelForTextToWaveform

    from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
    from higgs_audio.config import HiggsAudioConfig
    from higgs_audio.model.model import HiggsAudioForConditionalGeneration

    for kind in (AutoModel, AutoModelForTextToWaveform):
        kind.register(HiggsAudioConfig, HiggsAudioForConditionalGeneration, exist_ok=True)
    AutoModel.register(HiggsAudioTokenizerConfig, HiggsAudioTokenizer, exist_ok=True)


def register_tokenizer() -> None:
    """AutoTokenizer."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from higgs_audio.config import HiggsAudioConfig

    AutoTokenizer.register(HiggsAudioConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)


def register_processor() -> None:
    """AutoProcessor."""
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
    """Watches imports of transformers and of this package, and registers after the outermost one."""

    def __init__(self) -> None:
        self._waiting = dict(REGISTRATIONS)
        self._inside = threading.local()  # depth of imports inside imports; every thread has its own

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the usual finder gives, whose loader tells us when it is done."""
        if name.partition(".")[0] not in ("transformers", "higgs_audio"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with self._deeper():
                execute(module)
            self.register()

        loader.exec_module = exec_module  # of this one loader, which loads this one module

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._inside.depth = self._depth + 1
        try:
            yield
        finally:
            self._inside.depth -= 1

    @property
    def _depth(self) -> int:
        return getattr(self._inside, "depth", 0)

    def register(self) -> None:
        """Registers what belongs to the modules that are there now, unless an import is still under way."""
        if self._depth:
            return
        with self._deeper():  # a registration imports in its turn
            while any(self._try(name) for name in list(self._waiting) if name in sys.modules):
                pass  # what a registration imported may be one of the four
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)

    def _try(self, name: str) -> bool:
        """Whether it worked. A library that transformers needs may be half imported around us; the next import is soon
        enough then."""
        registration = self._waiting.pop(name)
        try:
            registration()
        except ImportError:
            self._waiting[name] = registration
            return False
        return True


def install() -> None:
    """Registers our classes with what is imported of transformers, and with the rest when it is."""
    if any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        return  # the package was imported, forgotten and imported again
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    finder.register()
