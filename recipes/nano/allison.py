"""Extracts a human voice for the evaluation of cloning: prompts of Asterisk, spoken by Allison Smith.

    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722
    for package in asterisk-core-sounds-*.deb; do dpkg-deb -x "$package" allison; done
    python recipes/nano/allison.py allison OUT_DIR [--num 60]

Writes OUT_DIR/wav/*.wav and OUT_DIR/manifest-allison.jsonl, split `unseen`. The prompts are licensed under CC BY-SA 3.0
and are used for evaluation only: no model is trained on them. Requires ffmpeg.
"""

import argparse
import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from kokoro import write_clip
from speech import SAMPLE_RATE

TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
NUM_WORDS = (5, 16)  # minimum and maximum of a prompt
PLAIN = re.compile(r"[A-Z][A-Za-z' ,.]+[.]")  # no digits, brackets or stage directions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder with the unpacked packages")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=60)
    args = parser.parse_args()
    (args.out / "wav").mkdir(parents=True, exist_ok=True)
    clips = []
    for number, (name, text) in zip(range(args.num), prompts(args.package), strict=False):
        job = {"id": f"unseen-{number:03d}-allison", "text": text, "speaker": "allison", "split": "unseen"}
        clips.append(write_clip(read(args.package / SOUNDS / f"{name}.g722"), SAMPLE_RATE, job, args.out))
    lines = "".join(json.dumps(clip) + "\n" for clip in clips)
    (args.out / "manifest-allison.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(clips)} prompts, {sum(clip['seconds'] for clip in clips):.0f} s")


def prompts(package: Path) -> Iterator[tuple[str, str]]:
    """Yields the names and texts of prompts that are plain sentences."""
    with gzip.open(package / TEXTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            name, _, text = line.strip().partition(": ")
            text = " ".join(text.split())
            is_sentence = PLAIN.fullmatch(text) and NUM_WORDS[0] <= len(text.split()) <= NUM_WORDS[1]
            if is_sentence and (package / SOUNDS / f"{name}.g722").is_file():
                yield name, text


def read(path: Path) -> np.ndarray:
    """Reads a G.722 file; returns its samples at 24 kHz."""
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-ar", str(SAMPLE_RATE), "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.float32)


if __name__ == "__main__":
    main()
