"""The command `higgs-audio`: registers one function per subcommand. Results go to stdout, messages to stderr."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from higgs_audio.cli import checkpoints, codec, speak, train
from higgs_audio.cli.common import EXIT_CODE
from higgs_audio.errors import HiggsAudioError

app = typer.Typer(
    help="Higgs Audio V2: text to speech, audio to codes and back, and training.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(
    help="Train models on your own recordings; each command takes a recipe, a YAML file.", no_args_is_help=True
)
app.add_typer(train_app, name="train")
for command in (speak.speak, speak.batch, codec.encode, codec.decode, checkpoints.info, checkpoints.convert):
    app.command()(command)
train_app.command("lm")(train.language_model)
train_app.command("tokenizer")(train.audio_tokenizer)
train_app.command("teacher")(train.semantic_teacher)
train_app.command("prepare")(train.prepare_clips)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; for an error of the package, prints one line to stderr and exits with code 2."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="higgs-audio")
    except HiggsAudioError as error:
        message = " ".join(str(error).split())
        print(f"higgs-audio: {message}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None


@app.callback(invoke_without_command=True)
def version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Higgs Audio V2: text to speech, audio to codes and back, and training."""
    if version:
        from higgs_audio import __version__

        print(__version__)
        raise typer.Exit
