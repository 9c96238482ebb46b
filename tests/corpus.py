"""A corpus to train on: sentences whose phones are hummed, in a folder with a manifest."""

import json

import numpy as np
import soundfile

from higgs_audio.train.phones import phone_ids, phones

RATE = 24_000
HUBERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
TEXTS = (
    "The sun rises in the east.",
    "Nobody knows the answer.",
    "We walked along the river.",
    "Seven men sat down.",
    "It rained all day.",
    "Come and see the garden.",
)


def hum(text):
    """A sound of a tone for each phone, 80 ms each, and the phones' times; between two phones of a kind is a dip."""
    spoken, length = phones(text), int(0.08 * RATE)
    tones = []
    for phone in spoken:
        pitch = 100 * 1.06 ** phone_ids(phone)[0]
        tone = np.sin(2 * np.pi * pitch * np.arange(length) / RATE) * np.hanning(length)
        tones.append(0.5 * tone)
    times = [(phone, round(0.08 * i, 3), round(0.08 * (i + 1), 3)) for i, phone in enumerate(spoken)]
    return np.concatenate(tones).astype(np.float32), times


def write_corpus(folder, entries):
    """`entries` of (id, fields): a manifest and, where the fields have a text to hum, the sound."""
    lines = []
    for name, fields in entries:
        line = {"id": name, "speaker": "ava", "audio": f"{name}.wav", **fields}
        if "seconds" not in line:
            sound, times = hum(line["text"])
            soundfile.write(folder / line["audio"], sound, RATE)
            line |= {"seconds": len(sound) / RATE} | ({"phones": times} if line.pop("timed", False) else {})
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
