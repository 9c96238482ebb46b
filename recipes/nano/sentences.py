"""Collects nano's training sentences and the two hundred held-out sentences.

Sources, all from Debian: `fortunes` (fortune cookies), `bible-kjv-text` (public domain, through `bible`), and the
example sentences of `wordnet-base`, which have a large modern vocabulary. Only sentences that every engine reads the
same way are kept: no digits, no abbreviations, no capitals inside a sentence.

    python recipes/nano/sentences.py DIR     # writes DIR/train.txt and DIR/heldout.txt
"""

import random
import re
import subprocess
import sys
from pathlib import Path

FORTUNES = Path("/usr/share/games/fortunes")
WORDNET = Path("/usr/share/wordnet")
SKIPPED_FORTUNES = {"art", "ascii-art", "songs-poems", "translate-me", "debian", "perl", "linux", "computers"}
# The package's list. The second hundred are in the training data of the shipped audio tokenizer, but not in that of the
# language model.
NUM_HELDOUT = 200
NGRAM = 5  # held-out and training sentences share no sequence of this many words
SEED = 20261122

_ATTRIBUTION = re.compile(r"\n\s*--.*", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][a-z']*(?:[ ,;:-]+(?:[a-z']+|I|I'[a-z]+|[A-Z][a-z]+))*[.!?]")
_REPEATED = re.compile(r"(.)\1\1")


def main(folder: str) -> None:
    """Writes both lists, one sentence per line."""
    rng = random.Random(SEED)
    fortunes = sorted({s for s in fortune_sentences() if is_plain(s, 14, 110)})
    bible = sorted({s for s in bible_clauses() if is_plain(s, 20, 70)})
    examples = sorted({s for s in wordnet_examples() if is_plain(s, 20, 90)})
    rng.shuffle(fortunes)
    rng.shuffle(bible)
    heldout = [s for s in fortunes if is_heldout_candidate(s)][:NUM_HELDOUT]
    forbidden = {g for s in heldout for g in ngrams(s)} | {" ".join(words(s)) for s in heldout}
    everything = fortunes + bible[: max(0, 26_000 - len(fortunes))] + examples
    train = [s for s in dict.fromkeys(everything) if is_disjoint(s, forbidden)]
    rng.shuffle(train)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
    (out / "heldout.txt").write_text("\n".join(heldout) + "\n", encoding="utf-8")
    print(
        f"{len(train)} training sentences and {len(heldout)} held out, "
        f"from {len(fortunes)} of fortunes, {len(bible)} of the bible, {len(examples)} of WordNet",
        file=sys.stderr,
    )


def fortune_sentences():
    """Yields the sentences of every fortune that is prose, without attributions."""
    for path in sorted(FORTUNES.iterdir()):
        if path.suffix or path.name in SKIPPED_FORTUNES or path.is_dir():
            continue
        for fortune in path.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
            prose = _ATTRIBUTION.sub("", fortune)
            yield from _SENTENCE.split(" ".join(prose.split()))


def bible_clauses():
    """Yields the clauses of the King James text, capitalized and ended with a full stop."""
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        verse = line.split(" ", 1)[-1]
        for clause in re.split(r"[.;:?!]\s*", verse):
            clause = clause.strip(" ,()")
            if clause:
                yield clause[0].upper() + clause[1:] + "."


def wordnet_examples():
    """Yields the quoted examples of the definitions, capitalized and ended with a full stop."""
    for path in sorted(WORDNET.glob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for quoted in re.findall(r'"([^"]+)"', line.partition(" | ")[2]):
                example = " ".join(quoted.split("- ")[0].split()).strip(" ,;")  # the author follows a dash
                if example:
                    yield example[0].upper() + example[1:] + ("" if example[-1] in ".!?" else ".")


def is_plain(sentence: str, shortest: int, longest: int) -> bool:
    """Whether a sentence has only letters and light punctuation, and moderate length."""
    in_bounds = shortest <= len(sentence) <= longest and len(words(sentence)) >= 3
    return in_bounds and bool(_PLAIN.fullmatch(sentence)) and not _REPEATED.search(sentence)


def is_heldout_candidate(sentence: str) -> bool:
    """Whether a sentence has no names, which ASR cannot spell, and five to fourteen words."""
    names = [w for w in re.findall(r"[A-Za-z']+", sentence)[1:] if w[0].isupper() and not w.startswith("I")]
    return not names and 5 <= len(words(sentence)) <= 14


def is_disjoint(sentence: str, forbidden: set[str]) -> bool:
    """Whether a sentence shares no n-gram with a held-out sentence and is not a held-out sentence."""
    return " ".join(words(sentence)) not in forbidden and not (ngrams(sentence) & forbidden)


def words(sentence: str) -> list[str]:
    """Returns the words in lower case, without punctuation."""
    return re.findall(r"[a-z']+", sentence.lower())


def ngrams(sentence: str) -> set[str]:
    """Returns all sequences of NGRAM words."""
    all_words = words(sentence)
    return {" ".join(all_words[i : i + NGRAM]) for i in range(len(all_words) - NGRAM + 1)}


if __name__ == "__main__":
    main(sys.argv[1])
