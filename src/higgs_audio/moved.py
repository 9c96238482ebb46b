"""Resolves module names of earlier versions: those of classes in pickles, and of functions in their documentation.

A pickle refers to a class by its module, so a pickle of an earlier version loads only if the old module can be
imported. `install` adds a finder to the end of `sys.meta_path` that provides the modules of `MOVED`. Any name that is
not listed there raises a `CheckpointError` that names a remedy.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from higgs_audio.errors import CheckpointError

# Module of an earlier version -> name in it -> current module and name, all below this package.
MOVED: Mapping[str, Mapping[str, str]] = {
    "answers": {"HiggsAudioResponse": "prompt.response.HiggsAudioResponse"},
    "evaluate.redraw": {"Verified": "evaluate.retry.VerifiedSpeech"},
    "generate": {
        "GenerateOutput": "generation.output.GenerateOutput",
        "Step": "generation.output.Step",
        "generate": "generation.loop.generate",
        "stream": "generation.loop.stream",
    },
    "layers": {
        name: f"model.layers.{name}"
        for name in ("Attention", "AudioEmbeddings", "DualFFNLayer", "FeedForward", "RMSNorm", "RotaryEmbedding")
    },
    "outputs": {name: f"model.outputs.{name}" for name in ("HiggsAudioModelOutput", "HiggsAudioOutput")},
    "processor": {},
    "sampling": {"SamplingOptions": "generation.sampling.SamplingOptions"},
    "script": {"SpeechRequest": "speech.request.SpeechRequest"},
    "speaking": {"Speech": "speech.result.Speech"},
    "tower": {name: f"model.tower.{name}" for name in ("AudioTower", "FeatureProjector", "FrozenPositions")},
    "train": {},
    "train.adapt": {"Lora": "train_lm.lora.Lora"},
    "train.clips": {"Clip": "data.clips.Clip"},
    "train.composer": {"Mix": "train_lm.composer.ExampleMix"},
    "train.importers": {name: f"data.importers.{name}" for name in ("from_huggingface", "from_lhotse")},
    "train.lm_recipe": {"LanguageModelRecipe": "train_lm.recipe.LanguageModelRecipe"},
    "train.prepare": {"PrepareRecipe": "data.prepare.PrepareRecipe"},
    "train.shards": {"Sample": "data.shards.EncodedClip", "read_samples": "data.shards.read_encoded_clips"},
    "train.teacher": {"TeacherRecipe": "train_codec.teacher.TeacherRecipe"},
    "train.tokenizer_recipe": {"TokenizerRecipe": "train_codec.recipe.TokenizerRecipe"},
}
PACKAGE = __name__.partition(".")[0]


def find_moved(module: str, name: str) -> Any:
    """Returns the current object for a name of a module of `MOVED`.

    Raises:
        CheckpointError: the name is not listed in `MOVED`.
    """
    if name not in MOVED[module]:
        raise CheckpointError(
            f"{PACKAGE}.{module}.{name} belongs to an earlier version of this package: load models, processors and "
            "tokenizers from folders that were written by save_pretrained, and import names from the modules listed in "
            "docs/architecture.md"
        )
    target, _, attribute = MOVED[module][name].rpartition(".")
    return getattr(import_module(f"{PACKAGE}.{target}"), attribute)


class _Finder(Loader):
    """Finds and loads the modules of `MOVED`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        if package != PACKAGE or module not in MOVED:
            return None
        return ModuleSpec(name, self, is_package=any(other.startswith(f"{module}.") for other in MOVED))

    def exec_module(self, module: ModuleType) -> None:
        """Adds a `__getattr__` to the module, because importing the new modules here would take seconds."""
        old = module.__name__.partition(".")[2]

        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return find_moved(old, name)

        module.__dict__["__getattr__"] = get


def install() -> None:
    """Adds the finder to the end of `sys.meta_path`, unless it is already there."""
    if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
