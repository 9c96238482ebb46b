"""The commands that speak: `speak` and `batch`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from higgs_audio.cli.common import Device, Model, check_output, load_model, report, stderr
from higgs_audio.errors import OptionError, TextError, VoiceError, nearest

if TYPE_CHECKING:
    from higgs_audio.speech.result import Speech
    from higgs_audio.speech.tts import HiggsAudio


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
    from higgs_audio.cli.player import find_player, play
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
        check_output(output, FORMATS)
    if transcript is not None and voice is None:
        raise VoiceError("--transcript belongs to a recording: give it with --voice")
    began = time.perf_counter()
    tts = load_model(model, device, codec_device=codec_device, weights=weights, offload_text=offload_text)
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
    report(
        f"{speech.seconds:.2f} s of sound in {wall:.2f} s, real-time factor {wall / speech.seconds:.2f}, first sound "
        f"after {speech.first_sound_seconds:.2f} s; {loaded - began:.2f} s to load"
    )
    if speech.finish_reason != "stop":
        report(f"at least one utterance did not end by itself ({speech.finish_reason}); try another --seed")
    print(output)


def batch(
    texts: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="A JSON object with a text on each line.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the sounds.")],
    model: Model = "nano",
    device: Device = None,
    format: Annotated[str, typer.Option(help="wav, flac, mp3, ogg ...")] = "wav",
) -> None:
    """Speak many texts, several at once; what is there already is left as it is."""
    from higgs_audio.audio import FORMATS
    from higgs_audio.cli.batch import REPORT, missing_jobs, read_jobs, speak_all

    jobs = read_jobs(texts)
    if format not in FORMATS:
        raise OptionError(f"--format {format!r}; {nearest(format, FORMATS)}")
    if output.exists() and not output.is_dir():
        raise OptionError(f"-o {str(output)!r} is a file; give a folder")
    tts = load_model(model, device)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("speaking", total=len(missing_jobs(jobs, output, f".{format}")))
        failed = speak_all(tts, jobs, output, f".{format}", lambda job, error: progress.advance(bar))
    print(output)
    if failed:
        raise OptionError(
            f"{len(failed)} of {len(jobs)} texts were not spoken, {failed[0].id!r} first; {output / REPORT} says why"
        )


def _verified(
    tts: "HiggsAudio", text: str, voice: Any, tries: int, seed: int | None, options: dict[str, Any]
) -> "Speech":
    """The best of several tries, and what was heard in it."""
    from higgs_audio.evaluate.retry import generate_verified

    best = generate_verified(tts, text, voice, num_tries=tries, seed=seed, **options)
    report(f"{best.errors.errors} word errors after {best.num_tries} of {tries} tries; heard: {best.transcript}")
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


@contextmanager
def _seconds_made(what: str) -> Iterator[Callable[[float], None]]:
    """A line on stderr with the seconds of sound made so far; nothing where stderr is no terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(what)
        yield lambda seconds: progress.update(task, description=f"{what}: {seconds:.1f} s of sound")
