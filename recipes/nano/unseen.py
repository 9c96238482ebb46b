"""Measures whether a clone is told from others: every unseen voice of `speech.py` speaks, all references are compared.

    python recipes/nano/unseen.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--num 3]

For each voice one reference of 3 to 10 seconds, as `clone.py` makes it; `--num` sentences are spoken after it. An
output is `nearest` where its similarity (Resemblyzer) to its own reference is above that to every other voice's;
`margin` is the similarity to its own less the mean of those to the others. Resumable: OUT_DIR/items.jsonl keeps what is
measured.
"""

import random
import zlib
from pathlib import Path

import numpy as np
from clone import FIRST_TARGET, conversation, keep, measured, parse_arguments, recordings, reference, speak

from higgs_audio.audio.files import write
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.judges import SPEAKER, WORDS, check_judges
from higgs_audio.evaluate.metrics import bootstrap_interval, word_errors
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.speaker import embed, similarity


def main() -> None:
    args = parse_arguments(__doc__, 3, "sentences of each voice")
    check_judges(judges=WORDS + SPEAKER)
    out = Path(args.out)
    items = measured(out)
    done = {(item["speaker"], item["number"]) for item in items}
    clips = recordings(Path(args.speech))["unseen"]
    heard = {speaker: reference(clips[speaker], draw(speaker)) for speaker in sorted(clips)}
    known = {speaker: embed(sound) for speaker, (sound, _) in heard.items()}
    for number in range(args.num):
        for place, speaker in enumerate(heard):
            if (speaker, number) not in done:
                item = measure(
                    speaker, heard[speaker], known, number, number * len(heard) + place, args.checkpoint, out
                )
                keep(item, items, out)
    print(table([item for item in items if item["number"] < args.num]))


def draw(speaker: str) -> random.Random:
    """The reference of a speaker is the same in every run."""
    return random.Random(zlib.crc32(speaker.encode()))


def measure(
    speaker: str, voice: tuple, known: dict, number: int, sentence: int, checkpoint: str, out: Path
) -> dict[str, object]:
    """One output, compared with all references."""
    sentences = heldout().sentences[FIRST_TARGET:]
    text = sentences[sentence % len(sentences)].text
    sound, ended = speak(checkpoint, conversation(text, voice, None), sentence)
    write(sound, out / f"{speaker.replace('*', '-').replace('^', '-')}-{number}.wav")
    heard = transcribe([sound])[0].text
    errors, spoken = word_errors(text, heard), embed(sound)
    likeness = {name: round(similarity(spoken, one), 4) for name, one in known.items()}
    others = [value for name, value in likeness.items() if name != speaker]
    return {
        "speaker": speaker,
        "number": number,
        "text": text,
        "heard": heard,
        "errors": errors.errors,
        "words": errors.total,
        "own": likeness[speaker],
        "nearest": likeness[speaker] > max(others),
        "margin": round(likeness[speaker] - float(np.mean(others)), 4),
        "ended": ended,
        "likeness": likeness,
    }


def table(items: list[dict]) -> str:
    """A row for each voice, and one for all."""
    lines = ["| voice | outputs | WER | own | margin | nearest |", "| --- " + "| ---: " * 5 + "|"]
    for speaker in sorted({item["speaker"] for item in items}):
        lines.append(row(speaker, [item for item in items if item["speaker"] == speaker]))
    low, high = bootstrap_interval([item["errors"] for item in items], [item["words"] for item in items])
    return "\n".join([*lines, row("all", items), "", f"WER of all, 95 %: {100 * low:.1f} to {100 * high:.1f} %"])


def row(name: str, items: list[dict]) -> str:
    rate = sum(item["errors"] for item in items) / sum(item["words"] for item in items)
    own, margin, nearest = (np.mean([item[key] for item in items]) for key in ("own", "margin", "nearest"))
    return f"| {name} | {len(items)} | {100 * rate:.1f} % | {own:.3f} | {margin:.3f} | {100 * nearest:.0f} % |"


if __name__ == "__main__":
    main()
