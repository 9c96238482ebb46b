"""Tests of the text tokenizer of nano."""

import string

import pytest
from oracle import nano_tokenizer
from transformers import AutoTokenizer

from higgs_audio import special_tokens
from higgs_audio.special_tokens import END_OF_TURN

recipe = nano_tokenizer()


def test_nano_ids_have_no_gaps_stay_below_512_and_are_unchanged_after_saving(tokenizer, tmp_path):
    recipe.main(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert sorted(loaded.get_vocab().values()) == list(range(len(loaded)))
    assert len(loaded) < 512
    assert (loaded.bos_token, loaded.eos_token) == (special_tokens.BEGIN, END_OF_TURN)
    assert loaded.pad_token == special_tokens.PAD


def test_special_tokens_have_the_smallest_ids_in_the_published_order(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(special_tokens.SPECIAL_TOKENS)) == list(
        range(len(special_tokens.SPECIAL_TOKENS))
    )


@pytest.mark.parametrize("text", ["ðə sˈʌn ɹˈIzᵻz.", "hˌW ðˈɛn hˈɪɹ mˌi, hˌu ɐm ʌv?", " ˈivən sˈA;  ðˈW —“ʤ” "])
def test_phonemes_have_one_id_per_character_and_are_decoded_unchanged(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_no_prompt_piece_is_spelled_in_american_phonemes_alone():
    american = set("AIOWYbdfhijklmnpstuvwzæðŋɑɔəɛɜɡɪɹɾʃʊʌʒʔʤʧˈˌθᵊᵻTɐ")
    letters = [set(piece) for piece in recipe.PROMPT_PIECES if piece.strip()]
    assert not [piece for piece in letters if piece <= american]


@pytest.mark.parametrize("text", [string.printable, "  two  spaces . , n't s ", "日本 é\t\r\n", "<0x41><unk> ▁"])
def test_any_text_is_decoded_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_fixed_prompt_strings_are_single_ids(tokenizer):
    for piece in recipe.PROMPT_PIECES:
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece
