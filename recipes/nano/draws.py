"""Evaluates a thousand generations: each of the 200 held-out sentences several times, with alternating voices.

    python recipes/nano/draws.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--draws 5] [--limit N]

Rows of the table: the recordings; the first draw, which a user gets; all draws; and the best of three, once selected by
whisper-tiny.en, a model other than the one that the evaluation uses, and once by the evaluation's own model. Runaway
outputs reached their limit; empty outputs are shorter than a third of their recording. Resumable, as `evaluate.py`;
OUT_DIR/chooser.jsonl has the word errors by whisper-tiny.en.
"""

import argparse
import dataclasses
import json
from collections import defaultdict
from pathlib import Path

from evaluate import VOICES, generate, source_folder

from higgs_audio import NANO
from higgs_audio.evaluate.benchmark import Benchmark, heldout
from higgs_audio.evaluate.item import Item, ResultsFile, Synthesis
from higgs_audio.evaluate.metrics import word_errors
from higgs_audio.evaluate.run import run
from higgs_audio.evaluate.table import markdown, rows
from higgs_audio.listen.asr import transcribe

SELECTION_MODEL = "whisper-tiny.en"
NUM_CANDIDATES = 3
EMPTY = 1 / 3  # of the recording's length
DrawKey = tuple[str, int, int]  # voice, sentence, draw


def main() -> None:
    args = parse_arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    selection = SelectionErrors(out / "chooser.jsonl")
    benchmark = dataclasses.replace(heldout(tuple(VOICES), args.limit), rotated=True)
    index = {sentence.text: sentence.index for sentence in benchmark.sentences}

    def nano(text: str, voice: str, draw: int) -> Synthesis:
        synthesis = generate(args.checkpoint, text, voice, draw)
        selection.measure((voice, index[text], draw), text, synthesis)
        return synthesis

    systems = {"source": source_folder(Path(args.speech), out / "source"), "nano": nano}
    run(systems, benchmark, out, draws=args.draws)
    report = summary(benchmark, ResultsFile(out / "items.jsonl"), selection, args.draws)
    (out / "draws.md").write_text(report, encoding="utf-8")
    print(report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("out")
    parser.add_argument("--checkpoint", default=str(NANO))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--limit", type=int, help="number of sentences; all by default")
    return parser.parse_args()


class SelectionErrors:
    """Word errors of each draw by a second ASR model, cached in a file; of several lines for a draw the last counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.errors: dict[DrawKey, int] = {tuple(key): errors for key, errors in map(json.loads, lines)}

    def measure(self, key: DrawKey, text: str, synthesis: Synthesis) -> None:
        self.errors[key] = word_errors(text, transcribe([synthesis.waveform], SELECTION_MODEL)[0].text).errors
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([key, self.errors[key]]) + "\n")


def summary(benchmark: Benchmark, results: ResultsFile, selection: SelectionErrors, draws: int) -> str:
    """Returns the table and the numbers of failures."""
    items = [item for item in results.items.values() if item.key.draw < draws]
    sources = [item for item in items if item.key.system == "source"]
    nano = [item for item in items if item.key.system == "nano"]
    systems = {
        "recordings": sources,
        "first draw": [item for item in nano if item.key.draw == 0],
        f"best of {NUM_CANDIDATES} by {SELECTION_MODEL}": best(nano, lambda item: selection.errors[draw_key(item)]),
        f"best of {NUM_CANDIDATES} by the evaluation model": best(nano, errors),
        "all draws": nano,
    }
    table = [row for name, part in systems.items() for row in rows(name, part, sources, counts(benchmark, part))]
    return markdown(table) + "\n" + "\n".join(failures(nano, sources)) + "\n"


def counts(benchmark: Benchmark, items: list[Item]) -> dict[str, int]:
    draws = len({item.key.draw for item in items}) if len(items) > len(benchmark.sentences) else 1
    return {voice: draws * len(benchmark.sentences_of(voice)) for voice in benchmark.voices}


def best(items: list[Item], errors_of) -> list[Item]:
    """Returns the draw with the fewest errors among the first NUM_CANDIDATES of each sentence; the earliest if tied."""
    by_sentence = defaultdict(list)
    for item in sorted(items, key=lambda item: item.key.draw):
        if item.key.draw < NUM_CANDIDATES:
            by_sentence[item.key.voice, item.key.index].append(item)
    return [min(candidates, key=errors_of) for candidates in by_sentence.values()]


def draw_key(item: Item) -> DrawKey:
    return item.key.voice, item.key.index, item.key.draw


def errors(item: Item) -> int:
    return word_errors(item.key.text, item.transcript).errors


def failures(nano: list[Item], sources: list[Item]) -> list[str]:
    """Returns lines with the numbers of failures and the ten outputs whose length is worst."""
    length = {(item.key.voice, item.key.index): item.seconds for item in sources}
    ratio = {draw_key(item): item.seconds / length[item.key.voice, item.key.index] for item in nano}
    runaway = sum(not item.ended for item in nano)
    empty = sum(ratio[draw_key(item)] < EMPTY for item in nano)
    off = sum(abs(value - 1) > 0.3 for value in ratio.values())
    lines = [f"{len(nano)} generations: {runaway} runaway, {empty} empty, {off} lengths off by more than 30 %"]
    worst = sorted(nano, key=lambda item: -abs(ratio[draw_key(item)] - 1))[:10]
    return lines + [
        f"  {ratio[draw_key(item)]:.2f} {draw_key(item)} {item.key.text!r}, transcribed as {item.transcript!r}"
        for item in worst
    ]


if __name__ == "__main__":
    main()
