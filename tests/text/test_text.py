"""Tests of text processing: checks, normalization as in the published examples, splitting into utterances, phonemes."""

import random
import re
import subprocess
import sys

import pytest

from higgs_audio.errors import OptionError, TextError
from higgs_audio.text.markup import SOUNDS, check_speakable, find_special_tokens, sounds_to_tokens
from higgs_audio.text.normalization import normalize
from higgs_audio.text.phonemes import PAUSES, PHONEMES, phonemize
from higgs_audio.text.utterances import MAX_CHARS, split_utterances

# Special tokens.

SPECIAL_TOKENS = (
    "<|begin_of_text|> <|end_of_text|> <|finetune_right_pad_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> "
    "<|eot_id|> <|python_tag|> <|audio_bos|> <|audio_eos|> <|audio_out_bos|> <|reserved_special_token_6|> <|AUDIO|> "
    "<|AUDIO_OUT|> <|recipient|> <|scene_desc_start|> <|scene_desc_end|> <|generation_instruction_start|> "
    "<|generation_instruction_end|> <SE> </SE> <SE_s> </SE_s> <SE_e> </SE_e>"
)


@pytest.mark.parametrize("token", SPECIAL_TOKENS.split())
def test_every_special_token_is_found_and_rejected_by_name(token):
    assert find_special_tokens(f"Hello{token}world {token}.") == [token, token]
    with pytest.raises(TextError, match=re.escape(token)):
        check_speakable(f"Hello{token}world")


@pytest.mark.parametrize(
    "hidden", ["<|eot\u200b_id|>", "＜|eot_id|＞", "<｜eot_id｜>", "<|eot_\u00adid|>", "<\u2060SE>"]
)
def test_a_special_token_that_appears_only_after_normalization_is_rejected(hidden):
    with pytest.raises(TextError, match="special token"):
        check_speakable(f"Hello {hidden}")


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "x <- y |> z", "<b>bold</b>", "<SEA>", "《|eot_id|》", "a|<>|b", "< |a| >"]
)
def test_brackets_that_form_no_token_are_accepted(text):
    assert find_special_tokens(text) == find_special_tokens(normalize(text)) == []
    assert check_speakable(text) == text


@pytest.mark.parametrize("text", ["", " \n\t", "...", "?!", "—", "😀", "\u200b", "[]", "\ud83d"])
def test_a_text_without_letter_or_digit_is_rejected(text):
    with pytest.raises(TextError, match="letter or digit"):
        check_speakable(text)


@pytest.mark.parametrize("text", [None, 5, b"hello", ["hello"]])
def test_a_text_that_is_not_a_string_is_rejected(text):
    with pytest.raises(TextError, match="give a string"):
        check_speakable(text)


@pytest.mark.parametrize("text", ["Hello.", "7", "你好", "Привет", " é ", "x\n"])
def test_a_speakable_text_is_returned_unchanged(text):
    assert check_speakable(text) == text


def test_sound_tags_become_tokens():
    assert sounds_to_tokens("Ha [laugh] ha [Sing Start] la [sing end]") == (
        "Ha <SE>[Laughter]</SE> ha <SE_s>[Singing]</SE_s> la <SE_e>[Singing]</SE_e>"
    )
    assert sounds_to_tokens("[SPEAKER0] [aside] [laughs]") == "[SPEAKER0] [aside] [laughs]"
    assert all(len(find_special_tokens(sounds_to_tokens(f"[{sound}]"))) == 2 for sound in SOUNDS)


# Normalization.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，世界。", "你好, 世界."),
        ("甲：乙；丙？丁！戊、己。", "甲:乙;丙?丁!戊,己."),
        ("（note） well.", "note well."),
        ("【SPEAKER0】 hi.", "[SPEAKER0] hi."),
        ("《书》 and 「a」『b』.", '"书" and "a""b".'),
        ("“Hello” ‘there’ it’s.", "\"Hello\" 'there' it's."),
        ("no—never", "no - never."),
        ("1939–1945.", "1939-1945."),
        ("Wait…", "Wait..."),
        ("约翰·史密斯.", "约翰 史密斯."),
        ("It is 20°C or 68°F (warm).", "It is 20 degrees Celsius or 68 degrees Fahrenheit warm."),
        ("20℃!", "20 degrees Celsius!"),
        ("ＡＢＣ　１２３", "ABC 123."),
        ("ﬁne \ufb02at 𝐛old.", "fine flat bold."),
        ("x² and ½ stay.", "x² and ½ stay."),
        ("cafe\u0301.", "café."),
        ("a\u00a0b\tc  d.\u2028e", "a b c d.\ne."),
        ("\ufeffzero\u200bwidth\u00ad \ud800\x00done.", "zerowidth done."),
        ("First line,\r\n\r\n  second  line", "First line,\nsecond line."),
    ],
)
def test_typographic_and_full_width_characters_become_plain(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    "text", ["Hi.", "Hi!", "Hi?", "Hi,", "Hi;", "Hi:", "Hi...", '"Hi."', "(Hi!)", "Hi -", "نعم؟", "हाँ।"]
)
def test_a_text_with_a_closing_mark_gets_no_full_stop(text):
    assert normalize(text).count(".") == text.count(".")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said "hi"', 'He said "hi".'),
        ("10%", "10%."),
        ("你好", "你好."),
        ("Hi 😀", "Hi 😀."),
        ("[aside]", "[aside]."),
    ],
)
def test_a_text_without_a_closing_mark_gets_a_full_stop(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize("text", ["", " ", "...", "😀", "Ha [laugh]", "Ha [Sing end]", "Ha <SE>[Laughter]</SE>"])
def test_a_text_without_words_or_with_a_sound_at_its_end_gets_no_full_stop(text):
    assert normalize(text) == text.strip()


def test_normalization_is_idempotent():
    rng = random.Random(0)
    for _ in range(300):
        once = normalize(random_text(rng))
        assert normalize(once) == once


# Utterances.


@pytest.mark.parametrize(
    "middle",
    [
        "Dr. Smith",
        "Mr. and Mrs. Jones",
        "St. Mary",
        "J. R. R. Tolkien",
        "e.g. Python",
        "i.e. nothing",
        "3.14 of them",
        "No. 5 of them",
        "Fig. 3 and vol. 12",
        "vs. Another",
        "Apple Inc. Microsoft",
        "the U.S. Army",
        "a Ph.D. Student",
        "5 p.m. sharp",
        "version 2.0.1 of example.com",
        '"Really?" he said',
        "that... exactly",
        "nothing at all . . . or",
    ],
)
def test_a_full_stop_inside_a_sentence_does_not_split_it(middle):
    sentence = f"Something that is quite long stands before {middle} and something as long comes after it."
    assert split_utterances(sentence) == [sentence]
    assert split_utterances(f"{sentence} {sentence}") == [sentence, sentence]


@pytest.mark.parametrize(
    "sentences",
    [
        ["He arrived at the station at 5 p.m. sharp.", "Then he left for the other town."],
        ["She bought apples, oranges, bread, etc.", "The rest of it was already at home."],
        ["The whole family moved to the U.S. in 1999.", "It was a long and tiring journey."],
        ['He said to me: "I will be back soon."', '"I hope so," she answered him quietly.'],
        ["This is the very best thing of all!", "Is it really the best one of all?", "I think that it may well be so."],
        ["The one who knocked at the door is I.", "Nobody else was there at that time."],
        ["The answer to that question is no.", "Nobody will ever change it any more."],
        ["What on earth happened to him then…", "We will never know what it was."],
    ],
)
def test_sentences_are_separated(sentences):
    assert split_utterances(" ".join(sentences)) == sentences


def test_a_very_short_sentence_is_joined_to_its_neighbor():
    assert split_utterances("Yes. I have seen the one that you are looking for.") == [
        "Yes. I have seen the one that you are looking for."
    ]
    assert split_utterances("I have seen the one that you are looking for. No! Yes.") == [
        "I have seen the one that you are looking for. No! Yes."
    ]
    long = "word " * 35 + "end."
    assert split_utterances(f"{long} Yes.") == [long, "Yes."]


def test_paragraphs_are_separated_and_line_breaks_inside_them_become_spaces():
    text = "Chapter One\r\n\r\nIt was a dark\nand stormy night.\n \n* * *\n\n\n\nThe end"
    assert split_utterances(text) == ["Chapter One", "It was a dark and stormy night.", "The end"]


def test_a_long_sentence_is_split_at_the_clause_nearest_its_middle():
    text = "When the sun had gone down behind the hills, the children came home, tired and happy, and went to bed."
    assert split_utterances(text, max_chars=70) == [
        "When the sun had gone down behind the hills,",
        "the children came home, tired and happy, and went to bed.",
    ]


def test_a_long_clause_is_split_between_words_into_parts_of_similar_length():
    utterances = split_utterances("word " * 100, max_chars=90)
    assert {len(utterance) for utterance in utterances} <= set(range(45, 91))


def test_a_single_word_longer_than_the_limit_stays_whole():
    assert split_utterances("see " + "x" * 300 + " there", max_chars=20) == ["see", "x" * 300, "there"]


def test_text_without_spaces_is_split_between_characters():
    sentence = "今天的天气非常好我们一起去公园散步吧"
    assert split_utterances((sentence + "。") * 8, max_chars=60) == [sentence + "。"] * 8
    utterances = split_utterances(sentence * 20)
    assert "".join(utterances) == sentence * 20
    assert max(map(len, utterances)) <= MAX_CHARS // 3


def test_a_limit_of_one_character_gives_single_words():
    assert split_utterances("To be, or not to be.", max_chars=1) == ["To", "be,", "or", "not", "to", "be."]
    with pytest.raises(OptionError, match="max_chars"):
        split_utterances("Hello.", max_chars=0)


TEXT = (
    'the a I Dr. e.g. etc. p.m. U.S. 3.14 $5.50 J. No. 7 well-known don\'t (in fact) "quoted words" ‘so’ stop. Stop! '
    "why? yes, and; then: so... oh… — - 你好。 我们走吧， 日本語 naïve Straße http://a.b/c.d?e=f x"
)
WORDS = TEXT.split()
SPACES = [" ", " ", " ", "  ", "\n", "\r\n", "\n\n", "\n \n", "\t", "\u3000", ""]


def random_text(rng):
    return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randrange(1, 120)))


def test_random_texts_keep_all_words_in_order_at_any_limit():
    rng = random.Random(1)
    for _ in range(400):
        text, max_chars = random_text(rng), rng.choice([1, 10, 40, 80, 180])
        utterances = split_utterances(text, max_chars)
        assert letters("".join(utterances)) == letters(text)
        assert all(utterance == " ".join(utterance.split()) and letters(utterance) for utterance in utterances)
        assert all(len(utterance) <= max_chars or is_unbreakable(utterance) for utterance in utterances)
        spaced = re.sub(r"[^\x00-\x7f]", "e", text)  # where only spaces separate words, no word is split
        spaced = re.sub(r"-\s", " ", spaced)  # a word that is divided at the end of a line is joined
        words = [word for utterance in split_utterances(spaced, max_chars) for word in utterance.split()]
        assert [word for word in words if letters(word)] == [word for word in spaced.split() if letters(word)]


def letters(text):
    return [character for character in text if character.isalnum()]


def is_unbreakable(utterance):
    return " " not in utterance and not re.search("[\u3040-\u9fff]{2}", utterance)


@pytest.mark.parametrize("unit", ["!", "a", ". ", "a. ", "a, ", "。", "好", "\n", "A.", "…", '."', "x" * 200 + " "])
def test_a_book_is_split_in_linear_time(unit):
    utterances = split_utterances(unit * (200_000 // len(unit)))
    assert letters("".join(utterances)) == letters(unit) * (200_000 // len(unit))


# Phonemes.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sun rises.", "ðə sˈʌn ɹˈIzᵻz."),
        ("The sun rises", "ðə sˈʌn ɹˈIzᵻz."),
        ("“The sun” (rises)!", "ðə sˈʌn ɹˈIzᵻz!"),
        ("The\n sun\u200b  rises 😀", "ðə sˈʌn ɹˈIzᵻz."),
        ("Now?! Yes!!!", "nˈW? jˈɛs!"),
        ("Well... so — no--never…", "wˈɛl, sˌO, nˈO, nˈɛvəɹ."),
        ("Hi 你好 there", "hˈI ðˈɛɹ."),
        ("5٣①", "fˈɪfti θɹˈi wˈʌn."),
    ],
)
def test_phonemes_have_one_mark_for_each_pause(text, expected):
    assert phonemize(text) == expected


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It costs $3.50.", "It costs three dollars and fifty cents."),
        ("It costs £5m.", "It costs five million pounds."),
        ("Dr. Smith met Prof. Jones.", "Doctor Smith met Professor Jones."),
        ("It is 10% of 1,234.", "It is ten percent of one thousand two hundred thirty four."),
        ("On 12/03/2024.", "On December third, twenty twenty four."),
        ("At 5:30.", "At five thirty."),
        ("It was -5°C.", "It was minus five degrees Celsius."),
        ("The 2nd of May.", "The second of May."),
        ("In 1999.", "In nineteen ninety nine."),
        ("Pi is 3.14.", "Pi is three point one four."),
        ("№ 5 & α.", "Number five and alpha."),
        ("Take ⅓.", "Take one third."),
    ],
)
def test_numbers_dates_money_and_abbreviations_are_read_as_words(written, spoken):
    plain = str.maketrans("", "", "ˈˌ ")
    assert phonemize(written).translate(plain) == phonemize(spoken).translate(plain)


@pytest.mark.parametrize("text", ["", "...", "😀😀", "你好，世界。", "Привет", "שלום", "\u0301", "[]"])
def test_a_text_without_english_letters_or_digits_is_rejected(text):
    with pytest.raises(TextError, match="nothing speakable"):
        phonemize(text)


@pytest.mark.parametrize(
    "text", ["9" * 5000, "9," * 3000, "9" * 37, "1" + ",1" * 50, "İ", "①", "$" * 99 + "5", "M" * 999]
)
def test_texts_that_hibari_rejects_are_phonemized(text):
    """hibari 0.2.1 raises for numbers above a decillion, digits in circles and the dotted capital I."""
    assert phonemize(text)


@pytest.mark.parametrize("unit", ["a", "!", "[", "a-", "1:", "A.", "a1", "The sun rises. ", "-", " "])
def test_a_very_long_text_is_phonemized_in_linear_time(unit):
    assert phonemize("x " + unit * (6000 // len(unit)))


def test_a_long_unknown_word_is_phonemized_completely():
    assert [phonemize("zorbl" * times).count("ɔ") > 0.7 * times for times in (8, 20)] == [True, True]


def test_random_texts_give_valid_and_deterministic_phonemes():
    rng = random.Random(2)
    odd = [chr(rng.randrange(0x3000)) for _ in range(300)] + [chr(rng.randrange(0x110000)) for _ in range(100)]
    for _ in range(300):
        text = "".join(rng.choice([*WORDS, *odd]) + rng.choice(["", " "]) for _ in range(rng.randrange(1, 12)))
        if not any(character.isascii() for character in letters(text)):
            continue
        phonemes = phonemize(text)
        assert set(phonemes) <= PHONEMES
        assert phonemes == phonemize(text) == " ".join(phonemes.split())
        assert phonemes[-1] in PAUSES
        assert phonemes[0] not in PAUSES
        assert not re.search(rf"\s[{PAUSES}]|[{PAUSES}][^ ]", phonemes)


def test_normalization_imports_neither_torch_nor_the_front_end():
    code = (
        "import sys; from higgs_audio.text import normalize, split_utterances; split_utterances(normalize('Hi'));"
        "sys.exit('torch' in sys.modules or 'hibari' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
