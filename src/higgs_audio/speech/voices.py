"""Voices: the named voices of a checkpoint, and voices cloned from recordings."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgs_audio.audio.files import read
from higgs_audio.audio.waveform import Waveform, from_array
from higgs_audio.checkpoint import Checkpoint, as_checkpoint
from higgs_audio.checkpoint.names import VOICES_FILE
from higgs_audio.errors import AudioError, CheckpointError, OptionError, VoiceError, nearest
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.references import check_reference
from higgs_audio.text.markup import check_speakable

MAX_REFERENCE_SECONDS = 30.0  # a longer reference slows down every step and does not improve the voice
NUM_REFERENCES = 64  # recordings whose codes are cached, so that each recording in use is encoded once


def read_voices(folder: str | Path | Checkpoint) -> dict[str, dict[str, str]]:
    """Returns the named voices of a checkpoint, in the file's order: name -> {"profile": ..., "description": ...}.

    The model identifies the voice by the text `profile`; `description` is for users. Empty without voices.json.

    Raises:
        CheckpointError: voices.json has another form.
    """
    checkpoint = as_checkpoint(folder)
    voices, path = checkpoint.read_if_present(VOICES_FILE), checkpoint.path(VOICES_FILE)
    if not all(name and _is_voice(entry) for name, entry in voices.items()):
        raise CheckpointError(f'{path} must be like {{"ava": {{"profile": "Ava", "description": "..."}}}}')
    return {name: {"description": "", **entry} for name, entry in voices.items()}


def _is_voice(entry: Any) -> bool:
    """Whether an entry has only strings as values, and a profile of one line."""
    texts = isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
    return texts and len(entry.get("profile", "").splitlines()) == 1


class VoiceLibrary:
    """The named voices of a checkpoint, and voices cloned from recordings. Thread-safe.

    Args:
        profiles: name -> {"profile": ..., "description": ...}; the first is the default voice. None for no voices.
        processor: encodes recordings.

    Raises:
        OptionError: profiles of another form.
    """

    def __init__(self, profiles: Mapping[str, Mapping[str, str]] | None, processor: HiggsAudioProcessor) -> None:
        if not isinstance(profiles, (Mapping, NoneType)) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("profile"), str) for entry in (profiles or {}).values()
        ):
            raise OptionError(f'voices={profiles!r:.60}; give None, or a dict like {{"ava": {{"profile": "Ava"}}}}')
        self._profiles = profiles or {}
        self._processor = processor
        self._references: OrderedDict[bytes, NDArray[np.int64]] = OrderedDict()  # codes by the hash of the recording
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The names; the first is the default."""
        return tuple(self._profiles)

    def find(self, name: str) -> Voice:
        """Returns a named voice.

        Raises:
            VoiceError: no such voice.
        """
        if name not in self._profiles:
            raise VoiceError(
                f"no voice {name!r}; {nearest(name, self.names)}. To clone the voice of a recording, call "
                "voice(path, transcript)"
            )
        return Voice(name=name, profile=self._profiles[name]["profile"])

    def default(self) -> Voice | None:
        """Returns the default voice; None if the checkpoint has no named voices."""
        return self.find(self.names[0]) if self.names else None

    def load(self, source: str | Path | bytes | Waveform, transcript: str | None = None) -> Voice:
        """Returns a named voice, or the voice of a recording; for arguments and errors see `HiggsAudio.voice`."""
        if isinstance(source, str) and not self._is_recording(source):
            if transcript is not None:
                raise VoiceError(f"{source!r} is a named voice, which takes no transcript; omit it, or give a path")
            return self.find(source)
        if transcript is None:
            raise VoiceError("a recording needs its transcript; pass the spoken text, word for word, as transcript=")
        text, reference = check_speakable(transcript).strip(), _read_reference(source)
        check_reference(reference, text, self._processor.text_frontend == "phonemes")
        return Voice(transcript=text, codes=self._encode(reference))

    def _is_recording(self, source: str) -> bool:
        """Whether a string is a path, not the (possibly misspelled) name of a voice."""
        path = Path(source)
        return source not in self._profiles and (len(path.parts) > 1 or bool(path.suffix) or _is_file(path))

    def _encode(self, reference: Waveform) -> NDArray[np.int64]:
        """Returns a copy of the cached codes [K, F] of a recording."""
        key = hashlib.sha256(reference.samples.tobytes() + str(reference.sample_rate).encode()).digest()
        with self._lock:
            if key not in self._references:
                self._references[key] = self._processor.encode_audio(reference)
            self._references.move_to_end(key)
            while len(self._references) > NUM_REFERENCES:
                self._references.popitem(last=False)
            return self._references[key].copy()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def _read_reference(source: str | Path | bytes | Waveform) -> Waveform:
    """Reads the recording of a voice.

    Raises:
        AudioError: a recording that cannot be read, or is longer than `MAX_REFERENCE_SECONDS`.
    """
    if not isinstance(source, Waveform):
        return read(source, max_seconds=MAX_REFERENCE_SECONDS)
    if source.seconds > MAX_REFERENCE_SECONDS:
        raise AudioError(f"the recording lasts {source.seconds:.1f} seconds; give at most {MAX_REFERENCE_SECONDS:g}")
    return from_array(source.samples, source.sample_rate)
