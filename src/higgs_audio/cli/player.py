"""Sound as it is made: to a program that plays it, or as raw samples to a pipe."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import IO

import numpy as np

from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, OptionError

# Programs that play raw 16-bit samples from a pipe, with their arguments.
PLAYERS = {
    "pw-play": ["--rate={rate}", "--channels=1", "--format=s16", "-"],
    "paplay": ["--raw", "--rate={rate}", "--channels=1", "--format=s16le"],
    "aplay": ["-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", "{rate}", "-"],
    "ffplay": ["-autoexit", "-nodisp", "-loglevel", "error", "-f", "s16le", "-ar", "{rate}", "-i", "-"],
    "play": ["-q", "-t", "raw", "-e", "signed", "-b", "16", "-c", "1", "-r", "{rate}", "-"],
}


def find_player() -> str:
    """The first of `PLAYERS` that is installed.

    Raises:
        OptionError: none is.
    """
    found = next((name for name in PLAYERS if shutil.which(name)), None)
    if found is None:
        raise OptionError(f"no program to play with; install one of {', '.join(PLAYERS)}, or pipe stdout into a file")
    return found


def play(chunks: Iterable[Waveform], sample_rate: int, player: str | None = None) -> None:
    """Plays chunks as they come, with a program of `PLAYERS`; without one they go to stdout, mono, 16 bit, raw.

    Raises:
        AudioError: whoever was to take the sound has gone.
    """
    if player is None:
        _pour(chunks, sys.stdout.buffer)
        return
    arguments = [argument.format(rate=sample_rate) for argument in PLAYERS[player]]
    with subprocess.Popen([player, *arguments], stdin=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        _pour(chunks, process.stdin)
        process.stdin.close()
    if process.returncode:
        raise AudioError(f"{player} ended with code {process.returncode}; it may have no device to play on")


def _pour(chunks: Iterable[Waveform], pipe: IO[bytes]) -> None:
    try:
        for chunk in chunks:
            pipe.write((chunk.samples * 32767).round().astype(np.dtype("<i2")).tobytes())
            pipe.flush()
    except (BrokenPipeError, ConnectionResetError) as error:
        raise AudioError("whoever was to take the sound has gone; start it again") from error
