"""Measures whether clones of unseen voices can be told apart: every unseen voice is cloned and compared with twenty.

    python recipes/nano/unseen.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--num 3]

Each voice has one reference of 3 to 10 seconds, as `clone.py` makes it, and generates `--num` sentences. References of
four training voices complete the twenty. An output is `nearest` if its similarity (Resemblyzer) to its own reference
exceeds that to every other; `margin` is the similarity to its own minus the mean of the others. Resumable:
OUT_DIR/items.jsonl keeps the results.
"""

import random
import zlib
from pathlib import Path

import numpy as np
from clone import FIRST_TARGET, conversation, keep, measured, parse_arguments, recordings, reference, speak
from roundtrip import KOKORO

from higgs_audio.audio.files import write
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.metrics import bootstrap_interval, word_errors
from higgs_audio.evaluate.requirements import SPEAKER, WORDS, check_packages
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.speaker import embed, similarity

SEEN = ("heart", "joe", "slt", "rms")  # training voices among the references that outputs are compared with


def main() -> None:
    args = parse_arguments(__doc__, 3, "sentences of each voice")
    check_packages(packages=WORDS + SPEAKER)
    out = Path(args.out)
    items = measured(out)
    done = {(item["speaker"], item["number"]) for item in items}
    clips = recordings(Path(args.speech))
    seen = {speaker: clips["seen"][speaker] for speaker in SEEN if speaker in clips["seen"]}
    references = {name: reference(own, draw(name)) for name, own in sorted({**clips["unseen"], **seen}.items())}
    known = {speaker: embed(sound) for speaker, (sound, _) in references.items()}
    for number in range(args.num):
        for place, speaker in enumerate(sorted(clips["unseen"])):
            if (speaker, number) not in done:
                sentence = number * len(clips["unseen"]) + place
                item = measure(speaker, references[speaker], known, number, sentence, args.checkpoint, out)
                keep(item, items, out)
    print(table([item for item in items if item["number"] < args.num]))


def draw(speaker: str) -> random.Random:
    """A generator seeded by the speaker's name: its reference is the same in every run."""
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
    """A row for each voice, each group, and all."""
    lines = ["| voice | outputs | WER | own | margin | nearest |", "| --- " + "| ---: " * 5 + "|"]
    for speaker in sorted({item["speaker"] for item in items}):
        lines.append(row(speaker, [item for item in items if item["speaker"] == speaker]))
    for name, members in (("unseen Kokoro voices", True), ("unknown engines and the human", False)):
        lines.append(row(name, [item for item in items if (item["speaker"] in KOKORO) == members]))
    low, high = bootstrap_interval([item["errors"] for item in items], [item["words"] for item in items])
    return "\n".join([*lines, row("all", items), "", f"WER of all, 95 %: {100 * low:.1f} to {100 * high:.1f} %"])


def row(name: str, items: list[dict]) -> str:
    rate = sum(item["errors"] for item in items) / sum(item["words"] for item in items)
    own, margin, nearest = (np.mean([item[key] for item in items]) for key in ("own", "margin", "nearest"))
    return f"| {name} | {len(items)} | {100 * rate:.1f} % | {own:.3f} | {margin:.3f} | {100 * nearest:.0f} % |"


if __name__ == "__main__":
    main()
