"""Measures voice cloning with the programs of the published model card: one reference of 3 to 10 seconds, and two with
speaker tags.

    python recipes/nano/clone.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--num 16]

SPEECH_DIR is the output of `speech.py`. References are concatenated held-out recordings: `seen` references of training
voices, `unseen` references of other speakers. Resumable: the results are in OUT_DIR/items.jsonl, the audio in
OUT_DIR/*.wav.

`own` and `other` are the similarity (Resemblyzer) of the output to its own reference and to the reference of another
speaker; `nearer` is the share of outputs that are more similar to their own.
"""

import argparse
import itertools
import json
import random
import zlib
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from higgs_audio import NANO, HiggsAudioForConditionalGeneration, HiggsAudioProcessor
from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.metrics import bootstrap_interval, word_errors
from higgs_audio.evaluate.requirements import SPEAKER, WORDS, check_packages
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.speaker import embed, similarity
from higgs_audio.train_lm.composer import QUIET_ROOM, SAME_VOICE, SEVERAL_SPEAKERS

SECONDS = (3.0, 10.0)  # minimum and maximum of a reference
FIRST_TARGET = 40  # sentences from this index on are generated; earlier sentences occur in references
OPTIONS = {"max_length": 1024, "temperature": 0.3, "top_p": 0.95, "top_k": 50, "do_sample": True}
PROGRAMS = ("one reference", "two references")


def main() -> None:
    args = parse_arguments(__doc__, 16, "items of each program and kind of reference")
    check_packages(packages=WORDS + SPEAKER)
    out = Path(args.out)
    items = read_items(out)
    done = {(item["program"], item["kind"], item["number"]) for item in items}
    clips = recordings(Path(args.speech))
    for number, kind, program in itertools.product(range(args.num), clips, PROGRAMS):
        if (program, kind, number) not in done:
            item = measure(program, kind, number, clips[kind], args.checkpoint, out)
            append_item(item, items, out)
    print(table([item for item in items if item["number"] < args.num]))


def parse_arguments(description: str | None, num: int, meaning: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("out")
    parser.add_argument("--checkpoint", default=str(NANO))
    parser.add_argument("--num", type=int, default=num, help=meaning)
    return parser.parse_args()


def read_items(out: Path) -> list[dict]:
    """Returns the items that `out` already has; creates the folder."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "items.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def append_item(item: dict, items: list[dict], out: Path) -> None:
    """Appends an item to `items` and to the file in `out`."""
    items.append(item)
    with (out / "items.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(item) + "\n")


def recordings(speech: Path) -> dict[str, dict[str, list[tuple[Path, str]]]]:
    """Returns kind of reference -> speaker -> recordings with their texts, of sentences before FIRST_TARGET."""
    found: dict = {"seen": defaultdict(list), "unseen": defaultdict(list)}
    kinds = {"heldout": "seen", "unseen": "unseen"}
    for manifest in sorted(speech.glob("manifest*.jsonl")):
        for clip in map(json.loads, manifest.read_text(encoding="utf-8").splitlines()):
            if clip["split"] in kinds and int(clip["id"].split("-")[1]) < FIRST_TARGET:
                found[kinds[clip["split"]]][clip["speaker"]].append((speech / clip["audio"], clip["text"]))
    return found


def measure(program: str, kind: str, number: int, clips: dict, checkpoint: str, out: Path) -> dict:
    """Generates one output; returns its metrics."""
    rng = random.Random(zlib.crc32(f"{kind} {number}".encode()))  # equal for both programs and for every checkpoint
    speakers = sorted(clips)
    speaker = speakers[number % len(speakers)]
    other = rng.choice([name for name in speakers if name.split("*")[0] != speaker.split("*")[0]])
    own, unrelated = reference(clips[speaker], rng), reference(clips[other], rng)
    text = heldout().sentences[FIRST_TARGET + number % (100 - FIRST_TARGET)].text
    second = unrelated if program == PROGRAMS[1] else None
    waveform, ended = generate(checkpoint, conversation(text, own, second), number)
    write(waveform, out / f"{program.split()[0]}-{kind}-{number:02d}.wav")
    transcript = transcribe([waveform])[0].text
    errors = word_errors(text, transcript)
    similarities = [round(similarity(embed(waveform), embed(voice[0])), 4) for voice in (own, unrelated)]
    return {
        "program": program,
        "kind": kind,
        "number": number,
        "speaker": speaker,
        "of": other,
        "text": text,
        "heard": transcript,
        "errors": errors.errors,
        "words": errors.total,
        "own": similarities[0],
        "other": similarities[1],
        "seconds": round(len(waveform.samples) / waveform.sample_rate, 2),
        "ended": ended,
        "reference_seconds": round(len(own[0].samples) / own[0].sample_rate, 2),
    }


def reference(clips: list[tuple[Path, str]], rng: random.Random) -> tuple[Waveform, str]:
    """Returns concatenated recordings of one speaker, of a total length within SECONDS, and their text."""
    seconds, parts, texts = rng.uniform(*SECONDS), [], []
    for path, text in rng.sample(sorted(clips), len(clips)):
        waveform = read(path)
        length = sum(map(len, parts)) + len(waveform.samples)
        if length > SECONDS[1] * waveform.sample_rate:
            continue
        parts.append(waveform.samples)
        texts.append(text)
        if length >= seconds * waveform.sample_rate:
            break
    return Waveform(np.concatenate(parts), waveform.sample_rate), " ".join(texts)


def conversation(text: str, own: tuple[Waveform, str], second: tuple[Waveform, str] | None) -> list[dict]:
    """Returns the messages of the second program of the published model card; with a second reference, of the third."""
    if second is None:
        scene = f"{SAME_VOICE}\n\n<|scene_desc_start|>\n{QUIET_ROOM}\n<|scene_desc_end|>"
        return [{"role": "system", "content": scene}, *reference_turns(*own), {"role": "user", "content": text}]
    turns = [turn for number, voice in enumerate((own, second)) for turn in reference_turns(*voice, number)]
    target = {"role": "user", "content": f"[SPEAKER0] {text}"}
    return [{"role": "system", "content": SEVERAL_SPEAKERS}, *turns, target]


def reference_turns(waveform: Waveform, text: str, speaker: int | None = None) -> list[dict]:
    """Returns a reference as a user turn with its text and an assistant turn with its audio."""
    content = text if speaker is None else f"[SPEAKER{speaker}] {text}"
    audio = {"type": "audio", "audio": waveform.samples, "sampling_rate": waveform.sample_rate}
    return [{"role": "user", "content": content}, {"role": "assistant", "content": [audio]}]


def generate(checkpoint: str, messages: list[dict], seed: int) -> tuple[Waveform, bool]:
    """Returns the generated audio (half a second of silence if it is empty), and whether it ended before the limit."""
    model, processor = load(checkpoint)
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    torch.manual_seed(seed)
    outputs = model.generate(**inputs, **OPTIONS, tokenizer=processor.tokenizer)
    length = processor.get_prompt_len(inputs.input_ids)
    decoded = processor.decode(outputs[0], outputs[1], prompt_token_length=length)
    samples = np.zeros(12_000, np.float32) if decoded.audio is None else np.asarray(decoded.audio, np.float32)
    return Waveform(np.clip(samples, -1, 1), processor.sampling_rate), outputs[0].shape[-1] < OPTIONS["max_length"]


@lru_cache
def load(checkpoint: str) -> tuple[HiggsAudioForConditionalGeneration, HiggsAudioProcessor]:
    model = HiggsAudioForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval(), HiggsAudioProcessor.from_pretrained(checkpoint)


def table(items: list[dict]) -> str:
    """Returns a table with a row for each program and kind of reference."""
    lines = ["| program | references | items | WER | 95 % | own | other | nearer | ended |", "| --- " * 9 + "|"]
    lines[1] = "| --- | --- " + "| ---: " * 7 + "|"
    for program, kind in itertools.product(PROGRAMS, ("seen", "unseen")):
        part = [item for item in items if (item["program"], item["kind"]) == (program, kind)]
        if part:
            lines.append(row(program, kind, part))
    return "\n".join(lines)


def row(program: str, kind: str, items: list[dict]) -> str:
    errors, words = ([item[key] for item in items] for key in ("errors", "words"))
    low, high = bootstrap_interval(errors, words)
    own, other = (np.mean([item[key] for item in items]) for key in ("own", "other"))
    nearer = np.mean([item["own"] > item["other"] for item in items])
    ended = np.mean([item["ended"] for item in items])
    rate = f"{sum(errors) / sum(words):.1%} | {low:.1%} to {high:.1%}".replace("%", " %")
    return f"| {program} | {kind} | {len(items)} | {rate} | {own:.3f} | {other:.3f} | {nearer:.2f} | {ended:.2f} |"


if __name__ == "__main__":
    main()
