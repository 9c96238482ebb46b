"""The commands for checkpoints: `info` and `convert`."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_audio.cli.common import silence_libraries


def info(
    model: Annotated[str, typer.Argument(help="nano, a checkpoint folder, or a Hugging Face Hub repository.")] = "nano",
) -> None:
    """Describe a checkpoint (parameters, audio tokenizer, special tokens, voices) and the fast paths that run here."""
    from higgs_audio.checkpoint import open_checkpoint
    from higgs_audio.cli.describe import describe
    from higgs_audio.cli.fast_paths import fast_paths

    silence_libraries()
    checkpoint = open_checkpoint(model)
    for title, rows in {**describe(checkpoint), "fast paths": fast_paths(checkpoint)}.items():
        print(title)
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="nano, a checkpoint folder, or a Hugging Face Hub repository.", show_default=False
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="Output: a new or empty folder.", show_default=False)
    ],
    to: Annotated[str, typer.Option(help="Layout: boson, early, transformers or native.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Revision of the Hub repository.", show_default=False)] = None,
) -> None:
    """Convert a checkpoint to another layout; all tensors are preserved bit for bit."""
    from higgs_audio.convert import convert

    print(convert(source, destination, to, revision))
