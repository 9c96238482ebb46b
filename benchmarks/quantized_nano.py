"""Measures the effect of quantization on nano's logits, greedy codes and word errors, for docs/small-machines.md.

    python benchmarks/quantized_nano.py OUT.jsonl [--sentences 20] [--voice ava]

The model with each kind of weights computes logits for the codes that float32 generated; they are compared with the
logits of float32. It then generates speech with the same seeds, which Whisper base transcribes. Rows that OUT.jsonl
already has are not measured again. The result is the second table of docs/small-machines.md.
"""

import argparse
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_audio import HiggsAudio
from higgs_audio.delay import apply_delay
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.metrics import word_errors
from higgs_audio.listen.asr import transcribe
from higgs_audio.prompt.prompt import Turn, compose, to_messages

KINDS = ("fp32", "int8", "nf4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--sentences", type=int, default=20, help="held-out sentences (default: %(default)s)")
    parser.add_argument("--voice", default="ava", help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.is_file() else []
    done = {(row["weights"], row["index"]): row for row in map(json.loads, lines)}
    for sentence in heldout(limit=args.sentences).sentences:
        for kind in KINDS:
            if (kind, sentence.index) not in done:
                measured = measure(kind, sentence.text, args.voice, sentence.index)
                row = {"weights": kind, "index": sentence.index, **measured}
                done[kind, sentence.index] = row
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(*table(list(done.values())), sep="\n")


def measure(kind: str, text: str, voice: str, seed: int) -> dict[str, Any]:
    """Measures one sentence: mean squared difference and variance of logits, share of equal greedy codes, and word
    errors."""
    exact, quantized = audio_logits("fp32", text, voice, seed), audio_logits(kind, text, voice, seed)
    speech = load(kind).generate(text, voice, seed=seed)
    words = word_errors(text, transcribe([speech.waveform], "whisper-base")[0].text)
    return {
        "difference": float((quantized - exact).square().mean()),
        "variance": float((exact - exact.mean(-1, keepdim=True)).square().mean()),
        "agreement": float((quantized.argmax(-1) == exact.argmax(-1)).float().mean()),
        "errors": words.errors,
        "words": words.total,
        "ended": speech.finish_reason == "stop",
    }


@lru_cache(maxsize=8)
@torch.no_grad()
def audio_logits(kind: str, text: str, voice: str, seed: int) -> Tensor:
    """Returns the logits `[C, K, V]` at the columns that float32 generates, without those of stream bos and eos."""
    tts = load(kind)
    codes = torch.from_numpy(reference_codes(text, voice, seed))  # [K, F]
    prompt = compose([Turn(text, "SPEAKER0")], tts.voice(voice))
    features = tts.processor.apply_chat_template(to_messages(prompt), force_audio=True, output_labels=False)
    cache = tts.model(**features, use_cache=True).past_key_values
    columns = apply_delay(codes, 1024, 1025).T[None]  # [1, C, K]
    return tts.model(audio_input_ids=columns, past_key_values=cache, use_cache=True).logits[0, ..., :1024]


@lru_cache(maxsize=1)
def reference_codes(text: str, voice: str, seed: int) -> Any:
    """Returns the codes `[K, F]` that float32 generates."""
    return load("fp32").generate(text, voice, seed=seed).codes


@lru_cache
def load(kind: str) -> HiggsAudio:
    return HiggsAudio.from_pretrained("nano", device="cpu", weights=None if kind == "fp32" else kind)


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| weights | relative error of logits | same greedy code | WER | ended |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        matching = [row for row in rows if row["weights"] == kind]
        total = {name: sum(row[name] for row in matching) for name in matching[0] if name not in ("weights", "index")}
        error = (total["difference"] / total["variance"]) ** 0.5
        same, rate = total["agreement"] / len(matching), total["errors"] / total["words"]
        lines.append(f"| {kind} | {error:.1%} | {same:.1%} | {rate:.1%} | {total['ended']} of {len(matching)} |")
    return lines


if __name__ == "__main__":
    main()
