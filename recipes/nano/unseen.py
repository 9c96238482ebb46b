"""Measures how distinguishable clones of unseen voices are: compares a clone of each with twenty voices.

    python recipes/nano/unseen.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--num 3]

Each voice has one reference of 3 to 10 seconds, built as in `clone.py`; `--num` sentences are generated with it.
References of four training voices complete the twenty. An output is `nearest` if its similarity (Resemblyzer) to its
own reference exceeds the similarity to every other reference; `margin` is the similarity to its own minus the mean of
the others. Resumable: the results are in OUT_DIR/items.jsonl.
"""

import random
import zlib
from pathlib import Path

import numpy as np
from clone import FIRST_TARGET, append_item, conversation, generate, parse_arguments, read_items, recordings, reference
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
    items = read_items(out)
    done = {(item["speaker"], item["number"]) for item in items}
    clips = recordings(Path(args.speech))
    seen = {speaker: clips["seen"][speaker] for speaker in SEEN if speaker in clips["seen"]}
    references = {name: reference(own, draw(name)) for name, own in sorted({**clips["unseen"], **seen}.items())}
    embeddings = {speaker: embed(waveform) for speaker, (waveform, _) in references.items()}
    for number in range(args.num):
        for position, speaker in enumerate(sorted(clips["unseen"])):
            if (speaker, number) not in done:
                sentence = number * len(clips["unseen"]) + position
                item = measure(speaker, references[speaker], embeddings, number, sentence, args.checkpoint, out)
                append_item(item, items, out)
    print(table([item for item in items if item["number"] < args.num]))


def draw(speaker: str) -> random.Random:
    """Returns a random generator seeded by the speaker's name, so that its reference is the same in every run."""
    return random.Random(zlib.crc32(speaker.encode()))


def measure(
    speaker: str, voice: tuple, embeddings: dict, number: int, sentence: int, checkpoint: str, out: Path
) -> dict[str, object]:
    """Generates one output and compares it with all references; returns its metrics."""
    sentences = heldout().sentences[FIRST_TARGET:]
    text = sentences[sentence % len(sentences)].text
    waveform, ended = generate(checkpoint, conversation(text, voice, None), sentence)
    write(waveform, out / f"{speaker.replace('*', '-').replace('^', '-')}-{number}.wav")
    transcript = transcribe([waveform])[0].text
    errors, output = word_errors(text, transcript), embed(waveform)
    similarities = {name: round(similarity(output, embedding), 4) for name, embedding in embeddings.items()}
    others = [value for name, value in similarities.items() if name != speaker]
    return {
        "speaker": speaker,
        "number": number,
        "text": text,
        "heard": transcript,
        "errors": errors.errors,
        "words": errors.total,
        "own": similarities[speaker],
        "nearest": similarities[speaker] > max(others),
        "margin": round(similarities[speaker] - float(np.mean(others)), 4),
        "ended": ended,
        "likeness": similarities,
    }


def table(items: list[dict]) -> str:
    """Returns a table with a row for each voice, for each group, and for all."""
    lines = ["| voice | outputs | WER | own | margin | nearest |", "| --- " + "| ---: " * 5 + "|"]
    for speaker in sorted({item["speaker"] for item in items}):
        lines.append(row(speaker, [item for item in items if item["speaker"] == speaker]))
    for name, is_kokoro in (("unseen Kokoro voices", True), ("unknown engines and the human", False)):
        lines.append(row(name, [item for item in items if (item["speaker"] in KOKORO) == is_kokoro]))
    low, high = bootstrap_interval([item["errors"] for item in items], [item["words"] for item in items])
    return "\n".join([*lines, row("all", items), "", f"WER of all, 95 %: {100 * low:.1f} to {100 * high:.1f} %"])


def row(name: str, items: list[dict]) -> str:
    rate = sum(item["errors"] for item in items) / sum(item["words"] for item in items)
    own, margin, nearest = (np.mean([item[key] for item in items]) for key in ("own", "margin", "nearest"))
    return f"| {name} | {len(items)} | {100 * rate:.1f} % | {own:.3f} | {margin:.3f} | {100 * nearest:.0f} % |"


if __name__ == "__main__":
    main()
