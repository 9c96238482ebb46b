"""The command `higgs-audio`: one short function per verb. Results go to stdout, progress and complaints to stderr."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from higgs_audio.errors import HiggsAudioError, OptionError, TextError, VoiceError, nearest

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer
    from higgs_audio.speaking import Speech
    from higgs_audio.tts import HiggsAudio

app = typer.Typer(
    help="Higgs Audio V2: speech from text, codes from sound, and the training of both.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train on your own recordings; each recipe is a YAML file.", no_args_is_help=True)
app.add_typer(train_app, name="train")

FAILED = 2
stderr = Console(stderr=True)

Model = Annotated[str, typer.Option(help="nano, the folder of a checkpoint, or a hub repository.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0 ...; a GPU if there is one when left out.")]
Recipe = Annotated[Path, typer.Argument(help="YAML file.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replaces a key of it.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error of the package becomes one line on stderr and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="higgs-audio")
    except HiggsAudioError as error:
        message = " ".join(str(error).split())
        print(f"higgs-audio: {message}", file=sys.stderr)
        raise SystemExit(FAILED) from None


@app.callback(invoke_without_command=True)
def version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Higgs Audio V2: speech from text, codes from sound, and the training of both."""
    if version:
        from higgs_audio import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def speak(
    text: Annotated[str | None, typer.Argument(help="What to say; - reads it from stdin.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="speech.wav; or .flac, .mp3, .ogg ...")] = None,
    voice: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A voice, or a recording of one.")] = None,
    transcript: Annotated[str | None, typer.Option(help="What is said in the recording, word for word.")] = None,
    model: Model = "nano",
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal sound.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="Below 1 is calmer.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.", show_default=False)] = None,
    device: Device = None,
    codec_device: Annotated[str | None, typer.Option(help="Of the audio tokenizer; --device when left out.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="int8|nf4", help="Quantise: 8 or 4 bits a weight.")] = None,
    offload_text: Annotated[bool, typer.Option("--offload-text", help="Text weights stay in host memory.")] = False,
    tries: Annotated[int, typer.Option(help="Say it again, at most so often, until a listener hears it.")] = 1,
    stream: Annotated[bool, typer.Option("--stream", help="Play while it speaks; into a pipe: raw 16-bit.")] = False,
    low_latency: Annotated[bool, typer.Option("--low-latency", help="With --stream: sooner, not quite exact.")] = False,
) -> None:
    """Speak a text into a file, or aloud."""
    from higgs_audio.audio import FORMATS, write
    from higgs_audio.player import find_player, play
    from higgs_audio.text import check_speakable

    said = check_speakable(_read_text(text, file))
    if stream and (tries > 1 or output is not None):
        other = "--tries hears all of it first" if tries > 1 else "-o writes a file"
        raise OptionError(f"--stream plays while it speaks and {other}: leave one of them out")
    if low_latency and not stream:
        raise OptionError("--low-latency is about when the first sound comes: give it with --stream")
    player = find_player() if stream and sys.stdout.isatty() else None
    output = output or Path("speech.wav")
    if not stream:
        _check_output(output, FORMATS)
    if transcript is not None and voice is None:
        raise VoiceError("--transcript belongs to a recording: give it with --voice")
    began = time.perf_counter()
    tts = _load(model, device, codec_device=codec_device, weights=weights, offload_text=offload_text)
    chosen = None if voice is None else tts.voice(voice, transcript)
    options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    loaded = time.perf_counter()
    if stream:
        play(tts.stream(said, chosen, seed=seed, low_latency=low_latency, **options), tts.sample_rate, player)
        return
    with _seconds_made("speaking") as progress:
        if tries == 1:
            speech = tts.generate(said, chosen, seed=seed, progress=progress, **options)
        else:
            speech = _verified(tts, said, chosen, tries, seed, options)
    wall = time.perf_counter() - loaded
    write(speech.waveform, output)
    _report(
        f"{speech.seconds:.2f} s of sound in {wall:.2f} s, real-time factor {wall / speech.seconds:.2f}, first sound "
        f"after {speech.first_sound_seconds:.2f} s; {loaded - began:.2f} s to load"
    )
    if speech.finish_reason != "stop":
        _report(f"at least one utterance did not end by itself ({speech.finish_reason}); try another --seed")
    print(output)


@app.command()
def batch(
    texts: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="A JSON object with a text on each line.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the sounds.")],
    model: Model = "nano",
    device: Device = None,
    format: Annotated[str, typer.Option(help="wav, flac, mp3, ogg ...")] = "wav",
) -> None:
    """Speak many texts, several at once; what is there already is left as it is."""
    from higgs_audio.audio import FORMATS
    from higgs_audio.batch import REPORT, missing_jobs, read_jobs, speak_all

    jobs = read_jobs(texts)
    if format not in FORMATS:
        raise OptionError(f"--format {format!r}; {nearest(format, FORMATS)}")
    if output.exists() and not output.is_dir():
        raise OptionError(f"-o {str(output)!r} is a file; give a folder")
    tts = _load(model, device)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("speaking", total=len(missing_jobs(jobs, output, f".{format}")))
        failed = speak_all(tts, jobs, output, f".{format}", lambda job, error: progress.advance(bar))
    print(output)
    if failed:
        raise OptionError(
            f"{len(failed)} of {len(jobs)} texts were not spoken, {failed[0].id!r} first; {output / REPORT} says why"
        )


@app.command()
def encode(
    recording: Annotated[Path, typer.Argument(metavar="IN.wav", help="Any format and rate.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .safetensors file.", show_default=False)],
    model: Model = "nano",
    device: Device = None,
) -> None:
    """Turn a recording into codes."""
    import torch

    from higgs_audio.audio import read
    from higgs_audio.codec.file import save_codes

    _check_output(output, ["safetensors"])
    codec = _load_codec(model, device)
    samples = torch.from_numpy(read(recording, codec.config.sample_rate).samples)  # [S]
    codes = codec.encode(samples[None, None].to(codec.device)).audio_codes
    assert codes is not None
    save_codes(codes[0].cpu(), output, codec.config)
    _report(f"{codes.shape[1]} codebooks, {codes.shape[2]} frames, {codes.shape[2] / codec.config.frame_rate:.2f} s")
    print(output)


@app.command()
def decode(
    codes: Annotated[Path, typer.Argument(metavar="CODES.safetensors", help="From encode.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help=".wav, .flac, .mp3 ...", show_default=False)],
    model: Model = "nano",
    device: Device = None,
) -> None:
    """Turn codes into sound."""
    from higgs_audio.audio import FORMATS, Waveform, write
    from higgs_audio.codec.file import load_codes

    _check_output(output, FORMATS)
    codec = _load_codec(model, device)
    sound = codec.decode(load_codes(codes, codec.config)[None].to(codec.device)).audio_values
    assert sound is not None
    waveform = Waveform(sound[0, 0].clamp(-1, 1).cpu().numpy(), codec.config.sample_rate)
    write(waveform, output)
    _report(f"{waveform.seconds:.2f} s of sound")
    print(output)


@app.command()
def info(model: Annotated[str, typer.Argument(help="nano, a folder, or a hub repository.")] = "nano") -> None:
    """Describe a checkpoint: parameters of each part, size, audio tokenizer, special tokens, voices."""
    from higgs_audio.checkpoint import resolve
    from higgs_audio.describe import describe

    _quiet()
    for title, rows in describe(resolve(model)).items():
        print(title)
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="As --model of speak.", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new or empty folder.", show_default=False)],
    to: Annotated[str, typer.Option(help="boson, early, transformers or native.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.", show_default=False)] = None,
) -> None:
    """Write a checkpoint in another layout; every tensor keeps its bits."""
    from higgs_audio.convert import convert

    print(convert(source, destination, to, revision))


@train_app.command("lm")
def train_lm(recipe: Recipe, overrides: Overrides = None) -> None:
    """The language model, on prepared clips."""
    from higgs_audio.train.lm import train_language_model
    from higgs_audio.train.lm_recipe import LanguageModelRecipe

    _train(train_language_model, LanguageModelRecipe, recipe, overrides)


@train_app.command("tokenizer")
def train_tokenizer_command(recipe: Recipe, overrides: Overrides = None) -> None:
    """The audio tokenizer, on recordings."""
    from higgs_audio.train.tokenizer import train_tokenizer
    from higgs_audio.train.tokenizer_recipe import TokenizerRecipe

    _train(train_tokenizer, TokenizerRecipe, recipe, overrides)


@train_app.command("teacher")
def train_teacher_command(recipe: Recipe, overrides: Overrides = None) -> None:
    """The audio tokenizer's semantic teacher, on recordings with their texts."""
    from higgs_audio.train.teacher import TeacherRecipe, train_teacher

    _train(train_teacher, TeacherRecipe, recipe, overrides)


@train_app.command("prepare")
def prepare_command(recipe: Recipe, overrides: Overrides = None) -> None:
    """Recordings with their texts to what train lm reads: codes, phonemes, alignments."""
    from higgs_audio.train.prepare import PrepareRecipe, prepare

    _train(prepare, PrepareRecipe, recipe, overrides)


def _train(work: Callable[[Any], object], kind: type, path: Path, overrides: Sequence[str] | None) -> None:
    """Reads the recipe, does the work, prints what it returns: a path or counts."""
    from higgs_audio.train.recipe import load_recipe

    print(work(load_recipe(path, kind, _read_overrides(overrides or ()))))


def _read_overrides(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE strings, values as YAML reads them."""
    import yaml

    overrides = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise OptionError(f"--set {item!r}; give KEY=VALUE")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {item!r}: the value is not YAML") from error
    return overrides


def _verified(
    tts: "HiggsAudio", text: str, voice: Any, tries: int, seed: int | None, options: dict[str, Any]
) -> "Speech":
    """The best of several tries, and what was heard in it."""
    from higgs_audio.evaluate.redraw import speak_verified

    best = speak_verified(tts, text, voice, num_tries=tries, seed=seed, **options)
    _report(f"{best.errors.errors} word errors after {best.num_tries} of {tries} tries; heard: {best.transcript}")
    return best.speech


def _read_text(text: str | None, file: Path | None) -> str:
    """The text from its one source."""
    if (text is None) == (file is None):
        raise TextError("give the text once: as TEXT, as - (stdin), or with --file")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8")
        return sys.stdin.read() if text == "-" else str(text)
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"the text cannot be read: {error}; give a UTF-8 text file") from error


def _check_output(path: Path, formats: Collection[str]) -> None:
    """Complains about a path before the work, not after it."""
    if path.is_dir():
        raise OptionError(f"-o {str(path)!r} is a folder; give a file")
    if not path.parent.is_dir():
        raise OptionError(f"-o {str(path)!r}: its folder does not exist; make it first")
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise OptionError(f"-o {str(path)!r} does not end in a known format; {nearest(suffix, formats)}")


def _load(model: str, device: str | None, **options: Any) -> "HiggsAudio":
    _quiet()
    _spare_threads()
    from higgs_audio.tts import HiggsAudio

    return HiggsAudio.from_pretrained(model, device=device, **options)


def _load_codec(model: str, device: str | None) -> "HiggsAudioTokenizer":
    _quiet()
    _spare_threads()
    from higgs_audio.tts import load_codec

    return load_codec(model, device)


def _spare_threads() -> None:
    """No more of them than a container's time is enough for."""
    import torch

    from higgs_audio.native import num_threads

    torch.set_num_threads(num_threads())


def _quiet() -> None:
    """transformers shows a progress bar and a report for each file; torchao, which it imports where it is installed,
    reports kernels for other machines.
    """
    import logging

    from transformers.utils import logging as transformers_logging

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextmanager
def _seconds_made(what: str) -> Iterator[Callable[[float], None]]:
    """A line on stderr with the seconds of sound made so far; nothing where stderr is no terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(what)
        yield lambda seconds: progress.update(task, description=f"{what}: {seconds:.1f} s of sound")


def _report(line: str) -> None:
    print(line, file=sys.stderr)
