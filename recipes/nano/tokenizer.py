"""Builds nano's text tokenizer: one id for each special token, each fixed prompt string, each phoneme or character.

nano's texts are phonemes, so its vocabulary is an alphabet. Strings that every prompt repeats are single pieces: a
prompt then has only a few dozen tokens. Other text is tokenized by characters, and unknown characters by UTF-8 bytes.

    python recipes/nano/tokenizer.py DIR     # writes DIR/tokenizer.json and DIR/tokenizer_config.json
"""

import string
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from higgs_audio import special_tokens

UNKNOWN = "<unk>"  # required by `tokenizers.models.Unigram`, and never used: byte pieces cover every character
# System texts for several speakers: from the original examples, and from those of Hugging Face.
SEVERAL_SPEAKERS = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
SEVERAL_SPEAKERS_HF = (
    "As an AI assistant, your task is to convert written text into spoken words.\n"
    "    If the user's input begins with a [SPEAKER*] tag, omit the tag and create speech based on the following "
    "content using the designated voice.\n"
    "    Without a speaker tag, choose the most suitable voice for the text.\n"
)
SPARE_NAMES = ("Clara", "Henry", "Nora", "Oscar", "Ruby", "Leo", "Iris", "Hugo", "Maya", "Felix", "June", "Jonas")
# Trained checkpoints depend on this order: never change it.
PROMPT_PIECES = (
    *("system", "user", "assistant", "\n\n"),
    "Generate audio following instruction.",
    "Generate audio following instruction with the same voice.",
    SEVERAL_SPEAKERS,
    SEVERAL_SPEAKERS_HF,
    "Audio is recorded from a quiet room.",
    *(f"SPEAKER{number}: " for number in range(4)),
    *(f"[SPEAKER{number}] " for number in range(4)),
    *("feminine", "masculine"),
    *("Ava", "Joe", "Sally", "Angus"),
    *SPARE_NAMES,
)
# The alphabet of the grapheme-to-phoneme front end: punctuation, then every symbol of its vocabulary.
PHONEMES = (
    ';:,.!?—…"()“” \u0303ʣʥʦʨᵝꭧAIOQSTWYᵊabcdefhijklmnopqrstuvwxyzɑɐɒæβɔɕçɖðʤəɚɛɜɟɡɥɨɪʝɯɰŋɳɲɴøɸθœɹɾɻʁɽʂʃʈʧʊʋʌɣɤχʎʒʔ'
    "ˈˌːʰʲ↓→↗↘ᵻ"
)
PRINTABLE = string.printable[:95] + "\n"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

PIECE_SCORE = -1.0  # equal for all pieces, so that the segmentation with the fewest pieces is chosen
HIDDEN_SCORE = -1000.0  # special tokens and byte pieces never match plain text
MAX_SIZE = 512


def main(folder: str) -> None:
    """Writes the tokenizer's files."""
    tokenizer = build()
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    print(f"{len(tokenizer)} pieces", file=sys.stderr)


def build() -> PreTrainedTokenizerFast:
    """Builds the tokenizer; ids are positions in `vocabulary`."""
    model = Unigram(vocabulary(), unk_id=len(special_tokens.SPECIAL_TOKENS), byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens.SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special_tokens.BEGIN,
        eos_token=special_tokens.END_OF_TURN,
        pad_token=special_tokens.PAD,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def vocabulary() -> list[tuple[str, float]]:
    """Returns a list of (piece, score), in the order of ids."""
    special = [*special_tokens.SPECIAL_TOKENS, UNKNOWN]
    text = dict.fromkeys([*PROMPT_PIECES, *PHONEMES, *PRINTABLE])
    pieces = [(piece, HIDDEN_SCORE) for piece in special]
    pieces += [(piece, PIECE_SCORE) for piece in text]
    pieces += [(piece, HIDDEN_SCORE) for piece in BYTES]
    assert len(pieces) == len({piece for piece, _ in pieces}) <= MAX_SIZE
    return pieces


if __name__ == "__main__":
    main(sys.argv[1])
