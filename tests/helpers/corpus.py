"""A synthetic corpus for training tests: each phone of a sentence is a tone; the folder has a manifest."""

import json

import numpy as np
import soundfile
from safetensors.numpy import save_file

from higgs_audio.data.phones import phone_ids, phones
from higgs_audio.text.phonemes import phonemize

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
TEXT = {  # of a tiny language model
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TEXTS = (
    "The sun rises in the east.",
    "Nobody knows the answer.",
    "We walked along the river.",
    "Seven men sat down.",
    "It rained all day.",
    "Come and see the garden.",
)


def make_tones(text):
    """Returns samples with an 80 ms tone per phone, and the times of the phones; a dip in level separates equal
    phones."""
    sequence, length = phones(text), int(0.08 * RATE)
    tones = []
    for phone in sequence:
        pitch = 100 * 1.06 ** phone_ids(phone)[0]
        tone = np.sin(2 * np.pi * pitch * np.arange(length) / RATE) * np.hanning(length)
        tones.append(0.5 * tone)
    times = [(phone, round(0.08 * i, 3), round(0.08 * (i + 1), 3)) for i, phone in enumerate(sequence)]
    return np.concatenate(tones).astype(np.float32), times


def write_corpus(folder, entries):
    """Writes a manifest of `entries`, (id, fields) each, and an audio file for each entry without `seconds`."""
    lines = []
    for name, fields in entries:
        line = {"id": name, "speaker": "ava", "audio": f"{name}.wav", **fields}
        if "seconds" not in line:
            samples, times = make_tones(line["text"])
            soundfile.write(folder / line["audio"], samples, RATE)
            line |= {"seconds": len(samples) / RATE} | ({"phones": times} if line.pop("timed", False) else {})
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_samples(folder, samples):
    """Writes prepared clips, (text, codes [K, F], phones [F]) each, in the files that `prepare` writes."""
    lines, offset = [], 0
    for number, (text, codes, _) in enumerate(samples):
        fields = {"id": f"{number}", "text": text, "phonemes": phonemize(text), "speaker": "ava", "kept": "kept"}
        lines.append(json.dumps({**fields, "offset": offset, "frames": codes.shape[1]}, ensure_ascii=False))
        offset += codes.shape[1]
    arrays = {
        "codes": np.concatenate([codes for _, codes, _ in samples], axis=1).astype(np.uint16),
        "phones": np.concatenate([labels for *_, labels in samples]).astype(np.uint16),
    }
    save_file(arrays, folder / "part-0000.safetensors")
    (folder / "part-0000.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
