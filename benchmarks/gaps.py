"""Measures the pauses between utterances: the silence that is heard at each kind of boundary.

    python benchmarks/gaps.py [--texts 24] [--voice ava]

Generates texts that contain each kind of boundary. A gap is the time in which the RMS of 10 ms windows stays 30 dB
below the loudest window of the text, around the place where one utterance ends and the next begins. Prints the median
and the 5th and 95th percentile of each kind.
"""

import argparse
from collections import defaultdict

import numpy as np

from higgs_audio import HiggsAudio
from higgs_audio.speech.stream import stream_speech
from higgs_audio.text.utterances import read_utterances

SENTENCES = """The sun was shining on the quiet lake this morning.
Many people came to sit on the green grass.
A small boat crossed the water without a sound.
Nobody knew who had left the old door open.
She wrote a long letter to her brother in the north.
The last train of the day was already waiting.
He put the heavy box back on the wooden table.
We walked along the river until the light was gone.""".splitlines()
HEADINGS = ["A walk in the park", "What the neighbors saw", "The winter of the long letters"]
ITEMS = ["A large basket of fresh fruit", "Some bread and a little butter", "Two bottles of cold water"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--voice", default=None)
    args = parser.parse_args()
    tts = HiggsAudio.from_pretrained()
    gaps = defaultdict(list)
    for seed in range(args.texts):
        text = compose(seed)
        kinds = [utterance.boundary for utterance in read_utterances(text, 110)]
        for kind, gap in zip(kinds, measure(tts, text, args.voice, seed), strict=False):
            gaps[kind].append(gap)
    print("| boundary | gaps | median, s | 5 to 95 %, s |\n| --- | ---: | ---: | ---: |")
    for kind, values in sorted(gaps.items()):
        low, middle, high = np.percentile(values, [5, 50, 95])
        print(f"| {kind} | {len(values)} | {middle:.2f} | {low:.2f} to {high:.2f} |")


def compose(seed: int) -> str:
    """Returns a text with a heading, two paragraphs of two sentences, and a list."""
    rng = np.random.default_rng(seed)
    first, second, third, fourth = rng.choice(SENTENCES, 4, replace=False)
    items = "\n".join(f"- {item}" for item in rng.permutation(ITEMS))
    return f"# {rng.choice(HEADINGS)}\n\n{first} {second}\n\n{third} {fourth}\n\n{items}\n"


def measure(tts: HiggsAudio, text: str, voice: str | None, seed: int) -> list[float]:
    """Returns the seconds of silence at each boundary between two utterances."""
    request = tts.request(text, voice, {"seed": seed})
    chunks, ends, position = [], [], 0
    for chunk in stream_speech(tts.open_stream(request)):
        chunks.append(chunk.samples)
        position += len(chunk.samples)
        if chunk.finish_reason is not None:
            ends.append(position)
    samples = np.concatenate(chunks)
    width = round(0.01 * tts.sample_rate)
    loudness = np.sqrt(np.square(samples[: len(samples) // width * width].reshape(-1, width)).mean(1))
    is_silent = loudness < 10 ** (-30 / 20) * loudness.max()
    return [silence_around(is_silent, end // width) * 0.01 for end in ends[:-1]]


def silence_around(is_silent: np.ndarray, index: int) -> int:
    """Returns the number of silent windows around an index."""
    before = int(np.append(~is_silent[:index][::-1], True).argmax())
    after = int(np.append(~is_silent[index:], True).argmax())
    return before + after


if __name__ == "__main__":
    main()
