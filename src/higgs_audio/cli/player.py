"""Playback during generation: sends raw samples to a player program, or to stdout."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import IO

from higgs_audio.audio.files import pcm16
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
    """Returns the first of `PLAYERS` that is installed.

    Raises:
        OptionError: none of them is installed.
    """
    found = next((name for name in PLAYERS if shutil.which(name)), None)
    if found is None:
        raise OptionError(f"no audio player found; install one of {', '.join(PLAYERS)}, or pipe stdout into a file")
    return found


def play(chunks: Iterable[Waveform], sample_rate: int, player: str | None = None) -> None:
    """Plays chunks as they arrive, with one of `PLAYERS`; without one, writes them to stdout as raw mono 16-bit PCM.

    Raises:
        AudioError: the player failed, or the reader of stdout closed the pipe.
    """
    if player is None:
        _write_chunks(chunks, sys.stdout.buffer)
        return
    arguments = [argument.format(rate=sample_rate) for argument in PLAYERS[player]]
    with subprocess.Popen([player, *arguments], stdin=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        _write_chunks(chunks, process.stdin)
        process.stdin.close()
    if process.returncode:
        raise AudioError(f"{player} failed with code {process.returncode}; check that there is an audio device")


def _write_chunks(chunks: Iterable[Waveform], pipe: IO[bytes]) -> None:
    try:
        for chunk in chunks:
            pipe.write(pcm16(chunk))
            pipe.flush()
    except (BrokenPipeError, ConnectionResetError) as error:
        raise AudioError("the program that reads the audio closed the pipe; run both again") from error
