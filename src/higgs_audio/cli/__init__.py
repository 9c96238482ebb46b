"""The command `higgs-audio`."""

from higgs_audio.cli.main import main

__all__ = ["main"]
