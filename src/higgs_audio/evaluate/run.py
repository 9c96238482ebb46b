"""The evaluation run: every system generates every sentence with every voice; one table reports the scores."""

import json
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
from higgs_audio.evaluate.item import Item, ItemKey, ResultsFile, Synthesis, item_key, measure
from higgs_audio.evaluate.requirements import check_packages
from higgs_audio.evaluate.table import Row, markdown, rows
from higgs_audio.files import write_atomic

Generate = Callable[[str, str, int], Waveform | Synthesis]
System = Generate | str | Path

# Packages whose versions affect the scores.
SCORING_PACKAGES = (
    *("faster-whisper", "ctranslate2", "jiwer", "whisper-normalizer"),
    *("distillmos", "speechmos", "resemblyzer"),
)


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

    An interrupted run resumes: measured items are kept in `items.jsonl`. A recording in a folder is measured again if
    its samples have changed; if the behavior of a callable has changed, give it a new name.

    Args:
        systems: name -> system: either a callable `(text, voice, draw) -> Waveform | Synthesis`, where `draw` counts
            from 0 and serves as the seed, or a folder of recordings `{voice}/{index:03d}.wav` (further draws
            `{index:03d}-1.wav`). A file `{index:03d}.json` with `{"ended": true}` beside a recording may state whether
            generation stopped by itself.
        benchmark: sentences and voices.
        output: folder of `items.jsonl`, `table.json`, `table.md` and, written last, `manifest.json`.
        source: name of the system with recordings of the voices; similarity and duration are relative to it.
        draws: number of times each sentence is generated; the source has one recording.
        model: the ASR model, as in `listen.asr.transcribe`.

    Returns:
        The rows of the table, in the order of `systems`.

    Raises:
        OptionError: no system named `source`, a folder that does not exist, or `draws` below 1.
        MissingExtraError: a package of the metrics is not installed; raised before any work begins.
    """
    _check(systems, source, draws)
    check_packages(model)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # its presence means that the other files are complete
    results = ResultsFile(folder / "items.jsonl")
    counts = {name: 1 if name == source else draws for name in systems}
    measured = _measure_all(systems, benchmark, counts, model, results)
    sizes = {voice: len(benchmark.sentences_of(voice)) for voice in benchmark.voices}
    table = [
        row
        for name, items in measured.items()
        for row in rows(name, items, measured[source], {voice: counts[name] * size for voice, size in sizes.items()})
    ]
    write_atomic(folder / "table.json", _json([asdict(row) for row in table]))
    write_atomic(folder / "table.md", markdown(table))
    write_atomic(folder / "manifest.json", _json(_manifest(benchmark, counts, source, model)))
    return table


def _check(systems: Mapping[str, System], source: str, draws: int) -> None:
    if source not in systems:
        raise OptionError(f"no system {source!r} with the recordings of the voices; {nearest(source, systems)}")
    if draws < 1:
        raise OptionError(f"draws={draws}: give 1 or more")
    for name, system in systems.items():
        if not callable(system) and not Path(system).is_dir():
            raise OptionError(f"system {name!r}: {system} is not a folder; give a folder of recordings or a callable")


def _measure_all(
    systems: Mapping[str, System], benchmark: Benchmark, counts: Mapping[str, int], model: str, results: ResultsFile
) -> dict[str, list[Item]]:
    """Returns the items of each system, in the order of voices and sentences; prints failed and missing ones."""
    total = sum(counts.values()) * sum(len(benchmark.sentences_of(voice)) for voice in benchmark.voices)
    measured: dict[str, list[Item]] = {name: [] for name in systems}
    with Progress(console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("measuring", total=total)
        for name, voice, sentence, draw in _iterate(benchmark, counts):
            label = f"{name} {voice} {sentence.index:03d}"
            progress.update(bar, description=label)
            try:
                measured[name].append(_measured(systems[name], name, voice, sentence, draw, model, results))
            except MissingExtraError:
                raise
            except HiggsAudioError as error:
                progress.console.print(f"{label} is missing: {error}", markup=False, soft_wrap=True)
            progress.advance(bar)
    return measured


def _iterate(benchmark: Benchmark, counts: Mapping[str, int]) -> Iterator[tuple[str, str, Sentence, int]]:
    """Yields (system, voice, sentence, draw) in the order of the table."""
    for name, draws in counts.items():
        for voice in benchmark.voices:
            for sentence in benchmark.sentences_of(voice):
                for draw in range(draws):
                    yield name, voice, sentence, draw


def _measured(
    system: System, name: str, voice: str, sentence: Sentence, draw: int, model: str, results: ResultsFile
) -> Item:
    """Returns the item from the results file, or measures it and adds it to the file."""
    if callable(system):
        key = item_key(name, voice, sentence, draw, model)
        return results.items.get(key) or _measure(key, _as_synthesis(system(sentence.text, voice, draw)), results)
    stem = f"{sentence.index:03d}" + (f"-{draw}" if draw else "")
    recording = _read_recording(Path(system) / voice / f"{stem}.wav")
    key = item_key(name, voice, sentence, draw, model, recording.waveform)
    return results.items.get(key) or _measure(key, recording, results)


def _measure(key: ItemKey, synthesis: Synthesis, results: ResultsFile) -> Item:
    item = measure(key, synthesis)
    results.add(item)
    return item


def _as_synthesis(generated: Waveform | Synthesis) -> Synthesis:
    return Synthesis(generated) if isinstance(generated, Waveform) else generated


def _read_recording(path: Path) -> Synthesis:
    note = path.with_suffix(".json")
    try:
        ended = json.loads(note.read_text(encoding="utf-8"))["ended"] if note.exists() else None
    except (ValueError, KeyError, TypeError) as error:
        raise AudioError(f'{note} must be like {{"ended": true}}: {error}') from error
    return Synthesis(read(path), ended)


def _manifest(benchmark: Benchmark, counts: Mapping[str, int], source: str, model: str) -> dict[str, object]:
    return {
        "benchmark": benchmark.name,
        "sentences": len(benchmark.sentences),
        "voices": benchmark.voices,
        "rotated": benchmark.rotated,
        "draws": dict(counts),
        "source": source,
        "asr": model,
        "versions": {package: _version(package) for package in SCORING_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
