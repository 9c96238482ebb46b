"""Hashes the results of generation and training, to check that a change of the code does not alter them.

    OMP_NUM_THREADS=1 python benchmarks/fingerprint.py before.json     # on the old commit
    OMP_NUM_THREADS=1 python benchmarks/fingerprint.py after.json --expect before.json

It hashes twenty generations, a stream, a batch, the plain loop, a cloned voice, a dialogue, and three steps of each
training command, from the included checkpoint and of new models. Compare files of one machine and one number of threads
only: other processors round differently. The command exits with 1 if a hash differs from the expected file.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from higgs_audio import NANO, HiggsAudio, HiggsAudioForConditionalGeneration, HiggsAudioProcessor

TEXTS = (
    "The sun rises in the east and sets in the west.",
    "Please leave the keys on the kitchen table.",
    "Nobody remembered who had painted the door green.",
    "Rain is expected in the north.",
    "Bread, butter and a little salt are all you need.",
)
LONG = " ".join(TEXTS)
CONVERSATION = [
    {"role": "system", "content": "Generate audio following instruction."},
    {"role": "user", "content": TEXTS[0]},
]
RECIPES = {
    "teacher": {"body": "nano", "num_steps": 3, "timed_steps": 0, "batch_seconds": 6.0},
    "tokenizer": {"start": "nano", "num_steps": 3, "batch": 2, "crop_seconds": 0.8, "adversarial_weight": 1.0},
    "decoder": {"start": "nano", "num_steps": 3, "batch": 2, "crop_seconds": 0.8, "decoder_only": True},
    "prepare": {"tokenizer": "nano", "teacher": "{folder}/teacher/model", "min_score": -100.0},
    "lm": {
        "data": "{folder}/prepare",
        "heldout": "{folder}/prepare",
        "processor": str(NANO),
        "start": str(NANO),
        "num_steps": 3,
        "batch_positions": 600,
        "reference_share": 0.3,
        "several_share": 0.3,
        "unread_share": 0.1,
        "profiles": {"ava": "Ava", "joe": "Joe"},
        "default_speaker": "ava",
        "check_every": 3,
    },
    # New models, with every loss: their first steps take other paths than those of the included checkpoint.
    "tokenizer-new": {
        "teacher": "{folder}/teacher/model",
        "body": {
            "body": "vocos",
            "hidden_size": 16,
            "encoder_widths": [16, 16],
            "encoder_depths": [1, 1],
            "decoder_widths": [16, 16],
            "decoder_depths": [1, 1],
        },
        "codebook_dim": 16,
        "num_steps": 3,
        "batch": 2,
        "crop_seconds": 0.8,
        "kmeans_batches": 26,
        "warmup_unquantized": 2,
        "heard_weight": 0.5,
        "adversarial_weight": 1.0,
    },
    "lm-new": {
        "data": "{folder}/prepare",
        "heldout": "{folder}/prepare",
        "processor": str(NANO),
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        "num_steps": 3,
        "batch_positions": 600,
        "accumulate": 2,
        "guide_layers": [0],
        "phone_layer": 1,
        "voice_layers": [1],
        "voice_weight": 0.3,
        "name_layer": 0,
        "name_weight": 0.3,
        "z_weight": 1e-3,
        "cast_share": 0.3,
        "joined_share": 0.3,
        "reference_labels_after": 5,
        "profiles": {"ava": "Ava", "joe": "Joe"},
        "default_speaker": "ava",
        "check_every": 3,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file with the hashes")
    parser.add_argument("--expect", type=Path, help="hashes of an earlier run to compare with")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = dict(fingerprints(Path(folder)))
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(args.expect.read_text(encoding="utf-8")) if args.expect else found
    different = [name for name in expected if found.get(name) != expected[name]]
    print(f"{len(found)} hashes, {len(different)} different from those expected:", *different)
    sys.exit(bool(different))


def fingerprints(folder: Path) -> Iterator[tuple[str, str]]:
    tts = HiggsAudio.from_pretrained("nano", device="cpu")
    yield from speech(tts, folder)
    yield from programs(folder)
    yield from training(folder)


def speech(tts: HiggsAudio, folder: Path) -> Iterator[tuple[str, str]]:
    """Hashes speech of `HiggsAudio`. Writes the clips that cloning and training need."""
    lines = []
    for number in range(20):
        text, voice = TEXTS[number % 5], tts.voices[number % 4]
        speech = tts.generate(text, voice=voice, seed=number)
        yield f"generation {number}", digest(speech.codes, speech.waveform.samples)
        soundfile.write(folder / f"{number}.wav", speech.waveform.samples, speech.waveform.sample_rate)
        clip = {"id": str(number), "audio": f"{number}.wav", "text": text, "speaker": voice}
        lines.append(json.dumps(clip | {"split": "train"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    yield "stream", digest(*(chunk.samples for chunk in tts.stream(LONG, seed=1)))
    yield "low latency", digest(*(chunk.samples for chunk in tts.stream(LONG, seed=1, low_latency=True)))
    yield "batch", digest(*(speech.waveform.samples for speech in tts.generate_batch(TEXTS, seed=3)))
    reference = tts.voice(folder / "1.wav", transcript=TEXTS[1])
    yield "clone", digest(tts.generate(TEXTS[2], voice=reference, seed=5).codes)


def programs(folder: Path) -> Iterator[tuple[str, str]]:
    """Hashes the results of `model.generate`, called as in the documentation."""
    model = HiggsAudioForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32)
    processor = HiggsAudioProcessor.from_pretrained(NANO)
    recordings = [{"type": "audio", "audio": str(folder / f"{number}.wav")} for number in (1, 2)]
    dialogue = [
        {"role": "system", "content": "Generate audio following instruction."},
        {"role": "user", "content": f"[SPEAKER0] {TEXTS[1]}"},
        {"role": "assistant", "content": [recordings[0]]},
        {"role": "user", "content": f"[SPEAKER1] {TEXTS[2]}"},
        {"role": "assistant", "content": [recordings[1]]},
        {"role": "user", "content": f"[SPEAKER0] {TEXTS[3]}"},
    ]
    for name, messages in (("program", CONVERSATION), ("dialogue", dialogue)):
        inputs = processor.apply_chat_template(messages, add_generation_prompt=True, force_audio=True)
        outputs = model.generate(**inputs, max_new_tokens=120, seed=1, tokenizer=processor.tokenizer)
        yield name, digest(inputs.input_ids.numpy(), outputs[0].numpy(), *(row.numpy() for row in outputs[1]))


def training(folder: Path) -> Iterator[tuple[str, str]]:
    """Hashes the weights after three steps of each training command."""
    for name, recipe in RECIPES.items():
        output = folder / name
        filled = {
            key: value.format(folder=folder) if isinstance(value, str) else value for key, value in recipe.items()
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps({"data": str(folder), **filled, "output": str(output)}), encoding="utf-8")
        command = "tokenizer" if name == "decoder" else name.partition("-")[0]
        arguments = [sys.executable, "-m", "higgs_audio", "train", command, str(path)]
        subprocess.run(arguments, check=True, capture_output=True)
        weights = sorted([*output.glob("model/*.safetensors"), *output.glob("*.safetensors")])
        assert weights, f"train {command} wrote no weights"
        yield f"train {name}", hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()


def digest(*arrays: np.ndarray) -> str:
    """Returns the hash of arrays, their types and their shapes."""
    total = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
