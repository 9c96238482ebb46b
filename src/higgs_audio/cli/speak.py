"""The commands that generate speech: `speak` and `batch`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from higgs_audio.cli.common import Device, Model, check_output, load_model, make_folder, report, stderr
from higgs_audio.errors import OptionError, TextError, VoiceError, nearest

if TYPE_CHECKING:
    from higgs_audio.prompt.prompt import Voice
    from higgs_audio.speech.request import SpeechOptions
    from higgs_audio.speech.result import Speech
    from higgs_audio.speech.tts import HiggsAudio


def speak(
    text: Annotated[
        str | None, typer.Argument(help="Text to speak; - reads it from stdin.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Audio file: .wav, .flac, .mp3, .ogg ...; by default speech.wav."),
    ] = None,
    voice: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Voice: a name, or a recording to clone.")
    ] = None,
    transcript: Annotated[str | None, typer.Option(help="Words spoken in the recording.")] = None,
    model: Model = "nano",
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed gives the same audio.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; lower varies less.", show_default=False)
    ] = None,
    pause: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=SECONDS", help="Pause after a sentence, item, paragraph, heading or turn; repeatable."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.", show_default=False)] = None,
    device: Device = None,
    codec_device: Annotated[
        str | None, typer.Option(help="Device of the audio tokenizer; by default --device.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="int8|nf4", help="Quantize the weights to 8 or 4 bits.")
    ] = None,
    offload_text: Annotated[
        bool, typer.Option("--offload-text", help="Keep the weights for text in host memory.")
    ] = False,
    tries: Annotated[
        int, typer.Option(help="Generate up to this many times, until an ASR model recognizes every word.")
    ] = 1,
    stream: Annotated[
        bool, typer.Option("--stream", help="Play while generating; into a pipe, write raw 16-bit samples.")
    ] = False,
    low_latency: Annotated[
        bool, typer.Option("--low-latency", help="With --stream: start sooner; the audio differs slightly.")
    ] = False,
) -> None:
    """Generate speech from text: write it to a file, or play it."""
    from higgs_audio.cli.player import find_player, play
    from higgs_audio.text import check_speakable
    from higgs_audio.text.pauses import read_pauses

    content = check_speakable(_read_text(text, file))
    _check_options(output, voice, transcript, tries, stream, low_latency)
    pauses = read_pauses(_read_pairs(pause or []))
    player = find_player() if stream and sys.stdout.isatty() else None
    path = output or Path("speech.wav")
    if not stream:
        check_output(path)
    started = time.perf_counter()
    tts = load_model(model, device, codec_device, weights, offload_text)
    chosen = None if voice is None else tts.voice(voice, transcript)
    load_seconds = time.perf_counter() - started
    options: SpeechOptions = {"seed": seed, "pauses": pauses}
    if temperature is not None:
        options["temperature"] = temperature
    if stream:
        play(tts.stream(content, chosen, low_latency=low_latency, **options), tts.sample_rate, player)
    else:
        _speak_to_file(tts, content, chosen, tries, options, path, load_seconds)


def batch(
    texts: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="JSON Lines file: one object with a text per line.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the audio files.")],
    model: Model = "nano",
    device: Device = None,
    format: Annotated[str, typer.Option(help="Audio format: wav, flac, mp3, ogg ...")] = "wav",
) -> None:
    """Generate speech from many texts, several at once; skip texts whose output file exists."""
    from higgs_audio.audio import FORMATS
    from higgs_audio.cli.batch import REPORT, generate_all, missing_jobs, read_jobs

    jobs = read_jobs(texts)
    if format not in FORMATS:
        raise OptionError(f"--format {format!r}; {nearest(format, FORMATS)}")
    if output.exists() and not output.is_dir():
        raise OptionError(f"-o {str(output)!r} is a file; give a folder")
    make_folder(output)
    tts = load_model(model, device)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("generating", total=len(missing_jobs(jobs, output, f".{format}")))
        failed = generate_all(tts, jobs, output, f".{format}", lambda job, error: progress.advance(bar))
    print(output)
    if failed:
        raise OptionError(
            f"{len(failed)} of {len(jobs)} texts failed, {failed[0].id!r} first; {output / REPORT} lists the reasons"
        )


def _read_pairs(pairs: list[str]) -> dict[str, float]:
    """Reads KIND=SECONDS pairs.

    Raises:
        OptionError: a pair without "=", or a value that is no number.
    """
    values = {}
    for pair in pairs:
        kind, _, seconds = pair.partition("=")
        try:
            values[kind] = float(seconds)
        except ValueError:
            raise OptionError(f"--pause {pair!r:.60}; give a kind and seconds, like paragraph=1.2") from None
    return values


def _check_options(
    output: Path | None, voice: str | None, transcript: str | None, tries: int, stream: bool, low_latency: bool
) -> None:
    """Raises OptionError or VoiceError for options of `speak` that exclude or require each other."""
    if stream and (tries > 1 or output is not None):
        other = "--tries transcribes the complete audio" if tries > 1 else "-o writes a file"
        raise OptionError(f"--stream plays the audio during generation, but {other}: omit one of them")
    if low_latency and not stream:
        raise OptionError("--low-latency only affects streams: give it with --stream")
    if transcript is not None and voice is None:
        raise VoiceError("--transcript requires a recording: give it with --voice")


def _read_text(text: str | None, file: Path | None) -> str:
    """Returns the text from the argument, stdin or the file."""
    if (text is None) == (file is None):
        raise TextError("give the text once: as TEXT, as - (stdin), or with --file")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8")
        return sys.stdin.read() if text == "-" else str(text)
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"the text cannot be read: {error}; give a UTF-8 text file") from error


def _speak_to_file(
    tts: "HiggsAudio",
    text: str,
    voice: "Voice | None",
    tries: int,
    options: "SpeechOptions",
    path: Path,
    load_seconds: float,
) -> None:
    """Generates speech, writes it, and prints the path to stdout and statistics to stderr."""
    from higgs_audio.audio import write

    started = time.perf_counter()
    with _progress("generating") as progress:
        if tries == 1:
            speech = tts.generate(text, voice, progress=progress, **options)
        else:
            speech = _generate_verified(tts, text, voice, tries, options)
    seconds = time.perf_counter() - started
    write(speech.waveform, path)
    report(
        f"{speech.seconds:.2f} s of audio in {seconds:.2f} s, real-time factor {seconds / speech.seconds:.2f}, first "
        f"audio after {speech.first_audio_seconds:.2f} s; {load_seconds:.2f} s to load"
    )
    if speech.finish_reason != "stop":
        report(f"at least one utterance did not end by itself ({speech.finish_reason}); try another --seed")
    print(path)


def _generate_verified(
    tts: "HiggsAudio", text: str, voice: "Voice | None", tries: int, options: "SpeechOptions"
) -> "Speech":
    """Returns the best of several tries, and reports its transcript."""
    from higgs_audio.evaluate.retry import generate_verified

    best = generate_verified(tts, text, voice, num_tries=tries, **options)
    report(f"{best.errors.errors} word errors after {best.num_tries} of {tries} tries; transcript: {best.transcript}")
    return best.speech


@contextmanager
def _progress(verb: str) -> Iterator[Callable[[float], None]]:
    """Shows the seconds of audio generated so far on stderr, if it is a terminal; yields the function to update it."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(verb)
        yield lambda seconds: progress.update(task, description=f"{verb}: {seconds:.1f} s of audio")
