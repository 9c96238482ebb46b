"""One table of systems: every system speaks every sentence with every voice, and models that listen judge it."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from higgs_audio.audio.files import read
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, HiggsAudioError, MissingExtraError, OptionError, nearest
from higgs_audio.evaluate.benchmark import Benchmark, Sentence
from higgs_audio.evaluate.item import Item, Key, ResultsFile, Spoken, key, measure
from higgs_audio.evaluate.judges import check_judges
from higgs_audio.evaluate.table import Row, markdown, rows

Speak = Callable[[str, str, int], Waveform | Spoken]
System = Speak | str | Path

# What a score depends on beside the sound.
JUDGES = ("faster-whisper", "ctranslate2", "jiwer", "whisper-normalizer", "distillmos", "speechmos", "resemblyzer")


def run(
    systems: Mapping[str, System],
    benchmark: Benchmark,
    output: str | Path,
    *,
    source: str = "source",
    draws: int = 1,
    model: str = "whisper-base",
) -> list[Row]:
    """Measures every system and writes the table.

    It can be killed at any moment and run again: what was measured stays in `items.jsonl`. Items of a folder are
    measured anew where the sound has changed; a callable that has changed needs a new name.

    Args:
        systems: by name, either a callable `(text, voice, draw) -> Waveform | Spoken`, where `draw` counts from 0 and
            is to be the seed, or a folder of recordings `{voice}/{index:03d}.wav` (further draws `{index:03d}-1.wav`),
            beside which a `{index:03d}.json` of `{"ended": true}` may say whether it stopped by itself.
        benchmark: sentences and voices.
        output: folder of `items.jsonl`, `table.json`, `table.md` and, last, `manifest.json`.
        source: the system whose recordings the voices are; similarity and length are measured against it.
        draws: times each sentence is spoken; the source is spoken once.
        model: the ASR model, as in `listen.asr.transcribe`.

    Returns:
        The rows of the table, systems in the order given.

    Raises:
        OptionError: no system of the name `source`, a folder that does not exist, or fewer than one draw.
        MissingExtraError: a model that listens is not installed; said before anything is spoken or measured.
    """
    _check(systems, source, draws)
    check_judges(model)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # its presence says that the rest is complete
    ledger = ResultsFile(folder / "items.jsonl")
    counts = {name: 1 if name == source else draws for name in systems}
    measured = _measure_all(systems, benchmark, counts, model, ledger)
    parts = {voice: len(benchmark.part(voice)) for voice in benchmark.voices}
    table = [
        row
        for name, items in measured.items()
        for row in rows(name, items, measured[source], {voice: counts[name] * n for voice, n in parts.items()})
    ]
    _write(folder / "table.json", _json([asdict(row) for row in table]))
    _write(folder / "table.md", markdown(table))
    _write(folder / "manifest.json", _json(_manifest(benchmark, counts, source, model)))
    return table


def _check(systems: Mapping[str, System], source: str, draws: int) -> None:
    if source not in systems:
        raise OptionError(f"no system {source!r} to take the voices from; {nearest(source, systems)}")
    if draws < 1:
        raise OptionError(f"draws={draws}: give 1 or more")
    for name, system in systems.items():
        if not callable(system) and not Path(system).is_dir():
            raise OptionError(f"system {name!r}: {system} is not a folder; give a folder of recordings or a callable")


def _measure_all(
    systems: Mapping[str, System], benchmark: Benchmark, counts: Mapping[str, int], model: str, ledger: ResultsFile
) -> dict[str, list[Item]]:
    """Items by system, in the order of voices and sentences; what is missing or fails is left out and said."""
    total = sum(counts.values()) * sum(len(benchmark.part(voice)) for voice in benchmark.voices)
    measured: dict[str, list[Item]] = {name: [] for name in systems}
    with Progress(console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("listening", total=total)
        for name, voice, sentence, draw in _places(benchmark, counts):
            progress.update(bar, description=f"{name} {voice} {sentence.index:03d}")
            try:
                measured[name].append(_measured(systems[name], name, voice, sentence, draw, model, ledger))
            except MissingExtraError:
                raise
            except HiggsAudioError as error:
                progress.console.print(
                    f"{name} {voice} {sentence.index:03d} is missing: {error}", markup=False, soft_wrap=True
                )
            progress.advance(bar)
    return measured


def _places(benchmark: Benchmark, counts: Mapping[str, int]) -> Iterator[tuple[str, str, Sentence, int]]:
    for name, draws in counts.items():
        for voice in benchmark.voices:
            for sentence in benchmark.part(voice):
                for draw in range(draws):
                    yield name, voice, sentence, draw


def _measured(
    system: System, name: str, voice: str, sentence: Sentence, draw: int, model: str, ledger: ResultsFile
) -> Item:
    """The item from the ledger, or measured now and written there."""
    if callable(system):
        place = key(name, voice, sentence, draw, model)
        return ledger.items.get(place) or _listen(place, _spoken(system(sentence.text, voice, draw)), ledger)
    stem = f"{sentence.index:03d}" + (f"-{draw}" if draw else "")
    spoken = _recording(Path(system) / voice / f"{stem}.wav")
    place = key(name, voice, sentence, draw, model, spoken.waveform)
    return ledger.items.get(place) or _listen(place, spoken, ledger)


def _listen(place: Key, spoken: Spoken, ledger: ResultsFile) -> Item:
    item = measure(place, spoken)
    ledger.add(item)
    return item


def _spoken(made: Waveform | Spoken) -> Spoken:
    return Spoken(made) if isinstance(made, Waveform) else made


def _recording(path: Path) -> Spoken:
    note = path.with_suffix(".json")
    try:
        ended = json.loads(note.read_text(encoding="utf-8"))["ended"] if note.exists() else None
    except (ValueError, KeyError, TypeError) as error:
        raise AudioError(f'{note} must be like {{"ended": true}}: {error}') from error
    return Spoken(read(path), ended)


def _manifest(benchmark: Benchmark, counts: Mapping[str, int], source: str, model: str) -> dict[str, object]:
    return {
        "benchmark": benchmark.name,
        "sentences": len(benchmark.sentences),
        "voices": benchmark.voices,
        "rotated": benchmark.rotated,
        "draws": dict(counts),
        "source": source,
        "asr": model,
        "versions": {package: _version(package) for package in JUDGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
