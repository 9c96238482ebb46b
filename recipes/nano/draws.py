"""A thousand generations: each of the 200 held-out sentences several times, with alternating voices.

    python recipes/nano/draws.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--draws 5] [--limit N]

Rows: the recordings; the first draw, which is what a user gets; all draws; and the best of three, chosen by whisper
tiny.en, so that the chooser is not the judge, and by the judge itself. Runaways reached their limit; empty outputs are
shorter than a third of their recording. Resumable, as `evaluate.py`; OUT_DIR/chooser.jsonl has the chooser's
transcripts.
"""

import argparse
import dataclasses
import json
from collections import defaultdict
from pathlib import Path

from evaluate import VOICES, source_folder, speak

from higgs_audio import NANO
from higgs_audio.evaluate.benchmark import Benchmark, heldout
from higgs_audio.evaluate.item import Item, ResultsFile, Synthesis
from higgs_audio.evaluate.metrics import word_errors
from higgs_audio.evaluate.run import run
from higgs_audio.evaluate.table import markdown, rows
from higgs_audio.listen.asr import transcribe

CHOOSER = "whisper-tiny.en"
CHOICES = 3
EMPTY = 1 / 3  # of the recording's length
Place = tuple[str, int, int]  # voice, sentence, draw


def main() -> None:
    args = parse_arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    chooser = Chooser(out / "chooser.jsonl")
    benchmark = dataclasses.replace(heldout(tuple(VOICES), args.limit), rotated=True)
    index = {sentence.text: sentence.index for sentence in benchmark.sentences}

    def heard(text: str, voice: str, draw: int) -> Synthesis:
        spoken = speak(args.checkpoint, text, voice, draw)
        chooser.listen((voice, index[text], draw), text, spoken)
        return spoken

    systems = {"source": source_folder(Path(args.speech), out / "source"), "nano": heard}
    run(systems, benchmark, out, draws=args.draws)
    report = summary(benchmark, ResultsFile(out / "items.jsonl"), chooser, args.draws)
    (out / "draws.md").write_text(report, encoding="utf-8")
    print(report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("out")
    parser.add_argument("--checkpoint", default=str(NANO))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--limit", type=int, help="only the first so many sentences")
    return parser.parse_args()


class Chooser:
    """Word errors of a second ASR model by place, cached in a file; the last line of a place counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.errors: dict[Place, int] = {tuple(place): errors for place, errors in map(json.loads, lines)}

    def listen(self, place: Place, text: str, spoken: Synthesis) -> None:
        self.errors[place] = word_errors(text, transcribe([spoken.waveform], CHOOSER)[0].text).errors
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([place, self.errors[place]]) + "\n")


def summary(benchmark: Benchmark, ledger: ResultsFile, chooser: Chooser, draws: int) -> str:
    """The table and the failure counts."""
    items = [item for item in ledger.items.values() if item.key.draw < draws]
    sources = [item for item in items if item.key.system == "source"]
    nano = [item for item in items if item.key.system == "nano"]
    systems = {
        "recordings": sources,
        "first draw": [item for item in nano if item.key.draw == 0],
        f"best of {CHOICES}, {CHOOSER} chose": best(nano, lambda item: chooser.errors[place(item)]),
        f"best of {CHOICES}, the judge chose": best(nano, errors),
        "all draws": nano,
    }
    table = [row for name, some in systems.items() for row in rows(name, some, sources, counts(benchmark, some))]
    return markdown(table) + "\n" + "\n".join(mishaps(nano, sources)) + "\n"


def counts(benchmark: Benchmark, items: list[Item]) -> dict[str, int]:
    draws = len({item.key.draw for item in items}) if len(items) > len(benchmark.sentences) else 1
    return {voice: draws * len(benchmark.sentences_of(voice)) for voice in benchmark.voices}


def best(items: list[Item], errors_of) -> list[Item]:
    """The draw with the fewest errors among the first CHOICES of each sentence; the earliest if tied."""
    by_sentence = defaultdict(list)
    for item in sorted(items, key=lambda item: item.key.draw):
        if item.key.draw < CHOICES:
            by_sentence[item.key.voice, item.key.index].append(item)
    return [min(some, key=errors_of) for some in by_sentence.values()]


def place(item: Item) -> Place:
    return item.key.voice, item.key.index, item.key.draw


def errors(item: Item) -> int:
    return word_errors(item.key.text, item.transcript).errors


def mishaps(nano: list[Item], sources: list[Item]) -> list[str]:
    """Counts of failures, and the worst outputs by name."""
    length = {(item.key.voice, item.key.index): item.seconds for item in sources}
    ratio = {place(item): item.seconds / length[item.key.voice, item.key.index] for item in nano}
    runaway = [item for item in nano if not item.ended]
    empty = [item for item in nano if ratio[place(item)] < EMPTY]
    off = sum(abs(value - 1) > 0.3 for value in ratio.values())
    lines = [f"{len(nano)} generations: {len(runaway)} runaways, {len(empty)} empty, {off} off by more than 30 %"]
    worst = sorted(nano, key=lambda item: -abs(ratio[place(item)] - 1))[:10]
    return lines + [f"  {ratio[place(i)]:.2f} {place(i)} {i.key.text!r} heard {i.transcript!r}" for i in worst]


if __name__ == "__main__":
    main()
