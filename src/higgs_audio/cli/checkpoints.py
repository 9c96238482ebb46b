"""The commands on checkpoints: `info` and `convert`."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_audio.cli.common import quiet


def info(model: Annotated[str, typer.Argument(help="nano, a folder, or a hub repository.")] = "nano") -> None:
    """Describe a checkpoint: parameters of each part, size, audio tokenizer, special tokens, voices."""
    from higgs_audio.checkpoint import resolve
    from higgs_audio.cli.describe import describe

    quiet()
    for title, rows in describe(resolve(model)).items():
        print(title)
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="As --model of speak.", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new or empty folder.", show_default=False)],
    to: Annotated[str, typer.Option(help="boson, early, transformers or native.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.", show_default=False)] = None,
) -> None:
    """Write a checkpoint in another layout; every tensor keeps its bits."""
    from higgs_audio.convert import convert

    print(convert(source, destination, to, revision))
