"""Measures text to speech as a user sees it: real-time factor, time to the first audio, several texts at once.

    python benchmarks/speech.py [OUT.json] [--model nano] [--rounds 5] [--together 16]

All rounds run in one process, after a first round for warm-up. A round generates a text alone, with and without
guidance, streams it with and without low latency, and generates `--together` different sentences one after another and
at once. Figures are medians over rounds (minimum to maximum), ratios are taken within a round.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import clock, median_and_range

from higgs_audio import HiggsAudio

SENTENCE = "The sun rises in the east and sets in the west."
TEXT = SENTENCE + " This simple fact has been observed by humans for thousands of years."
SENTENCES = (  # five to fifteen words each
    SENTENCE,
    "We walked along the river until it grew dark.",
    "Please leave the keys on the kitchen table.",
    "The last train to the coast leaves at half past nine tonight.",
    "Nobody remembered who had painted the door green.",
    "A small boat was waiting for them behind the island.",
    "She counted the steps, and there were forty two of them.",
    "Rain is expected in the north, and sunshine everywhere else.",
    "He never finished the letter to his brother.",
    "The library opens at ten and closes when the last reader has gone home.",
    "Bread, butter and a little salt are all you need.",
    "Turn left at the church, then follow the wall.",
    "Her answer was short and very clear.",
    "In winter the lake freezes, and children skate on it after school.",
    "They sold the house but kept the garden.",
    "Tomorrow I will tell you how the story ends.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="JSON report")
    parser.add_argument("--model", default="nano", help="checkpoint: a name or a folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--together", type=int, default=16, help="sentences of a batch (default: %(default)s)")
    args = parser.parse_args()
    tts = HiggsAudio.from_pretrained(args.model)
    rounds = [measure(tts, number, args.together) for number in range(args.rounds + 1)][1:]  # the first warms up
    report = {name: median_and_range([figures[name] for figures in rounds]) for name in rounds[0]}
    report |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, value in report.items():
        print(f"| {name} | {value if not isinstance(value, list) else '{:.3f} ({:.3f} to {:.3f})'.format(*value)} |")


def measure(tts: HiggsAudio, seed: int, together: int) -> dict[str, float]:
    """Runs one round; returns its figures."""
    alone, speech = timed(lambda: tts.generate(TEXT, seed=seed))
    plain, unguided = timed(lambda: tts.generate(TEXT, seed=seed, text_guidance_scale=1.0))
    first, _ = timed(lambda: next(tts.stream(TEXT, seed=seed)))
    first_low_latency, _ = timed(lambda: next(tts.stream(TEXT, seed=seed, low_latency=True)))
    texts = [SENTENCES[number % len(SENTENCES)] for number in range(together)]
    serial, one_by_one = timed(lambda: [tts.generate(text, seed=seed) for text in texts])
    at_once, batch = timed(lambda: tts.generate_batch(texts, seed=seed))
    rate = sum(speech.seconds for speech in batch) / at_once
    return {
        "real-time factor": alone / speech.seconds,
        "real-time factor without guidance": plain / unguided.seconds,
        "first sound, s": first,
        "first sound with low latency, s": first_low_latency,
        f"sound a second, {together} at once, s": rate,
        "times one after another": rate / (sum(speech.seconds for speech in one_by_one) / serial),
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that `work` takes, and its result."""
    start = clock()
    result = work()
    return clock() - start, result


if __name__ == "__main__":
    main()
