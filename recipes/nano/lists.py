"""Measures the word errors of a checkpoint's named voices on two lists: sentences with names and numbers, and single
words.

    python recipes/nano/lists.py OUT_DIR [--checkpoint DIR] [--seeds 3] [--voices NAME ...]

The lists are `recipes/nano/heldout/*.txt`, fixed before the training runs. Each sentence is generated once with every
voice; each word with `--seeds` seeds, with alternating voices. Word errors are counted with Whisper base and Whisper's
English normalizer. Resumable: the results are in OUT_DIR/items.jsonl.
"""

import argparse
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from higgs_audio import NANO, HiggsAudio
from higgs_audio.audio.files import write
from higgs_audio.evaluate.metrics import bootstrap_interval, word_errors
from higgs_audio.evaluate.requirements import WORDS, check_packages
from higgs_audio.listen.asr import transcribe

LISTS = Path(__file__).with_name("heldout")
ItemKey = tuple[str, str, int, int]  # list, voice, line, seed


def main() -> None:
    args = parse_arguments()
    check_packages(packages=WORDS)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "items.jsonl"
    items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    done = {(item["list"], item["voice"], item["line"], item["seed"]) for item in items}
    with file.open("a", encoding="utf-8") as lines:
        for key in item_keys(args.voices or list(load_model(args.checkpoint).voices), args.seeds):
            if key not in done:
                items.append(measure(key, args.checkpoint, args.out))
                lines.write(json.dumps(items[-1]) + "\n")
                lines.flush()
    print(table(items))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", default=str(NANO))
    parser.add_argument("--seeds", type=int, default=3, help="number of generations of each word")
    parser.add_argument("--voices", nargs="+", help="named voices of the checkpoint; all by default")
    return parser.parse_args()


def read_list(name: str) -> list[str]:
    return (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def item_keys(voices: list[str], seeds: int) -> Iterator[ItemKey]:
    """Yields every sentence with every voice; every word with every seed, with alternating voices."""
    yield from (("names", voice, line, 0) for line in range(len(read_list("names"))) for voice in voices)
    for line in range(len(read_list("words"))):
        yield from (("words", voices[(line + seed) % len(voices)], line, seed) for seed in range(seeds))


@lru_cache
def load_model(checkpoint: str) -> HiggsAudio:
    return HiggsAudio.from_pretrained(checkpoint)


def measure(key: ItemKey, checkpoint: str, out: Path) -> dict:
    """Generates one output; returns its word errors."""
    name, voice, line, seed = key
    text = read_list(name)[line]
    speech = load_model(checkpoint).generate(text, voice=voice, seed=seed)
    write(speech.waveform, out / f"{name}-{voice}-{line:02d}-{seed}.wav")
    transcript = transcribe([speech.waveform])[0].text
    errors = word_errors(text, transcript)
    return {
        "list": name,
        "voice": voice,
        "line": line,
        "seed": seed,
        "text": text,
        "transcript": transcript,
        "errors": errors.errors,
        "words": errors.total,
        "seconds": round(len(speech.waveform.samples) / speech.waveform.sample_rate, 2),
        "ended": speech.finish_reason == "stop",
    }


def table(items: list[dict]) -> str:
    """Returns a table of the word errors by list and voice, and the share of items without errors."""
    lines = ["| list | voice | items | WER % (95 %) | right % | ended % |", "| --- | --- " + "| ---: " * 4 + "|"]
    for name in ("names", "words"):
        listed = [item for item in items if item["list"] == name]
        for voice in ["all", *sorted({item["voice"] for item in listed})]:
            part = [item for item in listed if voice in ("all", item["voice"])]
            if part:
                lines.append(row(name, voice, part))
    return "\n".join(lines)


def row(name: str, voice: str, part: list[dict]) -> str:
    errors, words = ([item[key] for item in part] for key in ("errors", "words"))
    low, high = bootstrap_interval(errors, words)
    rate = f"{100 * sum(errors) / sum(words):.1f} ({100 * low:.1f} to {100 * high:.1f})"
    right = 100 * sum(not item["errors"] for item in part) / len(part)
    ended = 100 * sum(item["ended"] for item in part) / len(part)
    return f"| {name} | {voice} | {len(part)} | {rate} | {right:.0f} | {ended:.0f} |"


if __name__ == "__main__":
    main()
