"""Written text to speakable text: tidy it, check it, cut long text into utterances, and spell it in phonemes."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from higgs_audio.errors import OptionError, TextError

if TYPE_CHECKING:
    from hibari.g2p import G2P

MAX_CHARS = 180  # of an utterance: some twelve seconds of speech
SHORT_CHARS = 30  # a sentence below this is spoken together with its neighbour

# Special tokens.

_SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|</?SE(?:_[se])?>")
_SOUNDS = {
    "laugh": "<SE>[Laughter]</SE>",
    "humming start": "<SE_s>[Humming]</SE_s>",
    "humming end": "<SE_e>[Humming]</SE_e>",
    "music start": "<SE_s>[Music]</SE_s>",
    "music end": "<SE_e>[Music]</SE_e>",
    "music": "<SE>[Music]</SE>",
    "sing start": "<SE_s>[Singing]</SE_s>",
    "sing end": "<SE_e>[Singing]</SE_e>",
    "applause": "<SE>[Applause]</SE>",
    "cheering": "<SE>[Cheering]</SE>",
    "cough": "<SE>[Cough]</SE>",
}
SOUNDS = tuple(_SOUNDS)
_SOUND = re.compile(rf"\[({'|'.join(SOUNDS)})\]", re.IGNORECASE)


def contains_special(text: str) -> list[str]:
    """Special tokens that are typed in a text, in order: `<|...|>`, `<SE>`, `</SE>`, `<SE_s>`, ...

    Also those that `normalize` would bring to light, hidden by an invisible character or full-width brackets.

    >>> contains_special("Hello.<|eot_id|>")
    ['<|eot_id|>']
    """
    return _SPECIAL.findall(text) or _SPECIAL.findall(_fold(text))


def check_speakable(text: str) -> str:
    """The text itself, if there is something to say in it.

    Special tokens are refused, never obeyed and never silently removed: as a token they would end the turn or ask for
    audio that is not there, and left out they would change what the writer sees of the text.

    Raises:
        TextError: not a string, empty, without a letter or digit, or with a special token typed in it.
    """
    if not isinstance(text, str):
        raise TextError(f"the text is a {type(text).__name__}; give a string")
    if found := contains_special(text):
        raise TextError(
            f"the text holds the special token {found[0]}; take it out, or write its brackets as words. "
            f"Sounds are written [{SOUNDS[0]}], [{SOUNDS[-1]}] and so on."
        )
    if not is_speakable(text):
        raise TextError(f"the text is {text!r:.60}; give at least one letter or digit")
    if not is_unicode(text):
        raise TextError(f"the text {text!r:.60} holds half of a character (a lone surrogate); decode it as UTF-8")
    return text


def is_unicode(text: str) -> bool:
    """Whether all of it are characters: a lone surrogate, from text decoded badly, is none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def mark_sounds(text: str) -> str:
    """Sounds in square brackets, any of `SOUNDS`, in the tokens that the published checkpoint was trained with.

    >>> mark_sounds("Well [laugh] yes.")
    'Well <SE>[Laughter]</SE> yes.'
    """
    return _SOUND.sub(lambda sound: _SOUNDS[sound[1].lower()], text)


def is_speakable(text: str) -> bool:
    """Whether a text has a letter or digit."""
    return any(character.isalnum() for character in text)


# Tidying.

# What the published examples replace, and the further characters of each kind. Two choices are ours: title marks
# become quotes, because as < and > they could spell a special token; and a dash keeps spaces, so that it is a pause.
_PUNCTUATION = {
    **dict.fromkeys("“”„‟«»「」『』《》〈〉〝〞″", '"'),
    **dict.fromkeys("‘’‚‛′`´＇", "'"),
    **dict.fromkeys("—―⸺", " - "),
    **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("()（）", " "),
    **dict.fromkeys("【〔", "["),
    **dict.fromkeys("】〕", "]"),
    **dict.fromkeys("·•・", " "),
    "，": ", ",
    "、": ",",
    "。": ".",
    "…": "...",
    "℃": "°C",
    "℉": "°F",
    "№": "No. ",
}
# Compatible characters that are read like the plain ones. Not among them: ² and ½, which are read differently.
_PLAIN_KINDS = ("<font>", "<wide>", "<narrow>", "<square>", "<noBreak>")
_LIGATURES = range(0xFB00, 0xFB07)
_JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of Persian and Hindi words
_DEGREES = {"°C": " degrees Celsius", "°F": " degrees Fahrenheit"}
_LONE_MARK = re.compile(r"(?<=\w) (?=[.,;:!?]+(?: |$))")  # what a bracket leaves behind
_ENDINGS = frozenset(".!?,;:-।॥؟۔؛،")
_CLOSERS = "\"'])} "
_SOUND_ENDS = (*(f"[{sound}]" for sound in SOUNDS), "</se>", "</se_s>", "</se_e>")


class _Table(dict[int, str]):
    """A table for str.translate that works out each character once."""

    def __missing__(self, code: int) -> str:
        self[code] = self.replacement(chr(code))
        return self[code]

    def replacement(self, character: str) -> str:
        raise NotImplementedError


class _Folds(_Table):
    """Character -> its plain form; invisible ones and halves of pairs -> nothing."""

    def replacement(self, character: str) -> str:
        if character in _PUNCTUATION:
            return _PUNCTUATION[character]
        kind = unicodedata.decomposition(character).partition(" ")[0]
        if kind in _PLAIN_KINDS or ord(character) in _LIGATURES:
            return unicodedata.normalize("NFKC", character)
        category = unicodedata.category(character)
        if category == "Zs" or character == "\t":
            return " "
        return "" if category.startswith("C") and character not in _JOINERS else character


_FOLDS = _Folds()


def _fold(text: str) -> str:
    """Lines kept, punctuation and letters in their plain form."""
    return "\n".join(unicodedata.normalize("NFC", line.translate(_FOLDS)) for line in text.splitlines())


def normalize(text: str) -> str:
    """A text as the language model reads it best.

    Typographic and full-width characters become plain ones, round brackets spaces, °C and °F words, whitespace single
    spaces; blank lines go. A full stop closes a text that has no closing mark: the model learned to stop from
    transcripts that end in one, and without it may go on to speak more than it was given.

    Numbers, dates and abbreviations stay as they are; reading them is left to the model, or to `phonemize`.

    >>> normalize("“Hello”…  it’s me")
    '"Hello"... it\\'s me.'
    """
    folded = _fold(text)
    for degrees, words in _DEGREES.items():
        folded = folded.replace(degrees, words)
    lines = (_LONE_MARK.sub("", " ".join(line.split())) for line in folded.splitlines())
    tidy = "\n".join(line for line in lines if line)
    return tidy if _is_closed(tidy) else tidy + "."


def _is_closed(text: str) -> bool:
    """Whether a text ends in a closing mark, perhaps in quotes, or in a sound, or says nothing at all."""
    ended = text.rstrip(_CLOSERS)[-1:] in _ENDINGS or text.lower().endswith(_SOUND_ENDS)
    return ended or not is_speakable(text)


# Utterances.

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs: no spaces between words
_WIDE_MARKS = "，、；：。！？…」』）》"
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(rf"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|[。！？][。！？…]*[\"'”’」』）》]*\s*|(?<!…)…+(?=[{_CJK}])")
_CLAUSE = re.compile(r"[,;:–—-][\"'”’»)\]]*\s+|[，、；：]\s*")
_WORD = re.compile(rf"\s+|(?<=[{_CJK}{_WIDE_MARKS}])(?=[{_CJK}])")
_NEXT = re.compile(r"[\"'“‘«(\[¿¡-]*\s*(\w+)")
_NO_WORD = re.compile(r"[^\w.&'’-]")
_IDEOGRAPH = re.compile(f"[{_CJK}]")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# What a full stop follows without ending the sentence.
_TITLES = _words(
    "adm approx atty capt cf cmdr col cpl dr ed eds e.g eg fr ft gen gov hon i.e ie lt maj messrs mlle mme mr mrs "
    "ms msgr mt pres prof pvt rep rev sen sgt st supt viz vs"
)
# What one follows that ends it only where a word comes that usually opens a sentence.
_ABBREVIATIONS = _words(
    "al apt aug ave bldg blvd bros co corp dec dept est etc feb govt inc jan jr jul jun ltd mar nov oct ph.d rd "
    "sep sept sr ste univ"
)
_OPENERS = _words(
    "a an and as at but by for he her his how however i if in it its my no nor not now of on or our she so that "
    "the their then there these they this those to was we what when where which while who why with yes yet you "
    "your"
)
# What one follows that belongs to the number behind it.
_NUMBERED = _words("art ch chap eq fig figs no nos p pp sec vol")


def split_utterances(text: str, max_chars: int = MAX_CHARS) -> list[str]:
    """Long text -> pieces to be spoken one after the other, every word in one of them, in order.

    Cut at blank lines and at the ends of sentences; a very short sentence stays with its neighbour, and one longer
    than `max_chars` is halved, at a clause near its middle or else between words. A single word that is longer stays
    whole. Line breaks and runs of spaces become one space; paragraphs without a letter or digit are left out.

    Args:
        text: as it was written, before `normalize`, which drops the blank lines.
        max_chars: at least 1. An ideograph or kana, which takes longer to say, counts as three.

    Raises:
        OptionError: max_chars below 1.
    """
    if max_chars < 1:
        raise OptionError(f"max_chars is {max_chars}; give 1 or more, {MAX_CHARS} is usual")
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split("\n".join(text.splitlines())))
    return [piece for paragraph in paragraphs for piece in _split_paragraph(paragraph, max_chars)]


def _split_paragraph(paragraph: str, max_chars: int) -> list[str]:
    cuts = [0, *_sentence_ends(paragraph), len(paragraph)]
    sentences = _join_short([paragraph[start:end] for start, end in pairwise(cuts)], max_chars)
    pieces = [piece.strip() for sentence in sentences for piece in _halve(sentence, max_chars)]
    return [piece for piece in pieces if is_speakable(piece)]


def _sentence_ends(paragraph: str) -> Iterator[int]:
    """Where each sentence but the first begins."""
    for mark in _SENTENCE.finditer(paragraph):
        if mark.end() < len(paragraph) and _ends_sentence(paragraph, mark):
            yield mark.end()


def _ends_sentence(paragraph: str, mark: re.Match[str]) -> bool:
    marks = mark[0].rstrip()
    following = _NEXT.match(paragraph, mark.end())
    if marks[0] in "。！？" or marks == mark[0]:  # in a script without spaces
        return True
    if not following or following[1][0].islower():
        return False
    if marks != ".":
        return True
    before = paragraph[max(0, mark.start() - 40) : mark.start()]  # no abbreviation is longer
    return _ends_with(_NO_WORD.split(before)[-1], following[1])


def _ends_with(word: str, following: str) -> bool:
    """Whether a full stop between two words ends a sentence, given that the second is no small letter's."""
    small = word.lower().lstrip("'’-")
    if small in _TITLES or (len(word) == 1 and word.isupper() and word != "I"):
        return False
    if small in _NUMBERED:
        return not following[0].isdigit()
    if small in ("a.m", "p.m"):
        return True
    if small in _ABBREVIATIONS or re.fullmatch(r"(?:\w\.)+\w", word):
        return following.lower() in _OPENERS
    return bool(word)


def _join_short(sentences: list[str], max_chars: int) -> list[str]:
    joined: list[str] = []
    for sentence in sentences:
        short = joined and min(_length(joined[-1]), _length(sentence)) < SHORT_CHARS
        if short and _length(joined[-1] + sentence) <= max_chars:
            joined[-1] += sentence
        else:
            joined.append(sentence)
    return joined


def _length(text: str) -> int:
    """Characters, an ideograph counted as the three letters that take as long to say."""
    return len(text.strip()) + 2 * len(_IDEOGRAPH.findall(text))


def _halve(sentence: str, max_chars: int) -> list[str]:
    """Pieces of at most `max_chars`, of about the same length, which joined are the sentence."""
    if _length(sentence) <= max_chars:
        return [sentence]
    length = len(sentence)
    clauses = [cut.end() for cut in _CLAUSE.finditer(sentence) if length <= 4 * cut.end() <= 3 * length]
    cuts = clauses or [cut.end() for cut in _WORD.finditer(sentence) if 0 < cut.end() < length]
    if not cuts:
        return [sentence]
    middle = min(cuts, key=lambda cut: abs(2 * cut - length))
    return _halve(sentence[:middle], max_chars) + _halve(sentence[middle:], max_chars)


# Phonemes.

# The American English symbols of misaki: 45 vowels and consonants, and the two marks of stress.
PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"
STRESSES = "ˈˌ"
# One mark for each pause that speech tells apart. Rarer ones (dashes, quotes, brackets) are read as these or left out:
# a symbol that a model has hardly seen costs more than it says.
PAUSES = ".!?,;:"
PHONEMES = frozenset(PHONES + STRESSES + PAUSES + " ")

_RARE_PHONES = str.maketrans({"—": ",", "…": ".", "a": "ɑ", "y": "i", "ʀ": "ɹ", "ɾ": "T", "ʔ": "t"})
_STRENGTH = "?!.:;,"  # the strongest of a run of marks stands for all
_RUN_OF_MARKS = re.compile(rf"\s*([{PAUSES}](?:\s*[{PAUSES}])*)\s*")
_SPOKEN_SYMBOLS = "°§±×÷™®©¢→←½¼¾²³µ"
_TRAILING_OFF = re.compile(r"\.{2,}(?=\s+[a-z])")
_DASH = re.compile(r"\s+-+\s+|--+")
# The front end reads a number in words only up to a decillion, and spells at most 24 letters of an unknown word; the
# longest words it knows have fewer than 33. Its time grows with the cube of the parts that a word has without a space.
_LONG_NUMBER = re.compile(r"\d(?:[,.]?\d){18,}")
_LONG_WORD = re.compile(r"[^\W\d_]{33,}")
_LONG_RUN = re.compile(r"\S{61,}")


class _Letters(_Table):
    """Characters -> what an English voice can read of them: itself, a name, a space, or nothing for a lone accent."""

    def replacement(self, character: str) -> str:
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        if character.isascii() or character in _SPOKEN_SYMBOLS:
            return " " if character in '[]{}"' else character
        if character == "İ":  # the one letter that is two in lower case, which the front end does not expect
            return "I"
        if greek := _GREEK.match(name):
            return f" {greek[1].lower()} "
        if category.startswith("L"):
            return character if name.startswith("LATIN") else " "
        if category == "Nd":
            return str(unicodedata.digit(character))
        if category.startswith("N"):  # ⅓, ①, Ⅳ and the numerals of other scripts
            plain = unicodedata.normalize("NFKC", character).replace("⁄", "/")
            return f" {plain} " if plain.isascii() else f" {unicodedata.numeric(character):g} "
        if category.startswith("M") or character in _JOINERS:
            return ""
        return " " if category in ("So", "Sk") else character


_GREEK = re.compile("GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)")
_LETTERS = _Letters()


@lru_cache(maxsize=1024)  # a text is read where it is checked, measured and written
def phonemize(text: str) -> str:
    """English text -> phonemes, in the American English alphabet of misaki; the same text always gives the same.

    The text is normalized first, so it ends in a mark. Numbers, dates, money and abbreviations are read as words.
    Greek letters are read by their names; emoji and the letters of other scripts are left out.

    Returns:
        A string of `PHONEMES`: words apart by one space, no space before a mark.

    Raises:
        TextError: nothing that an English voice can read.

    >>> phonemize("The sun rises")
    'ðə sˈʌn ɹˈIzᵻz.'
    """
    try:
        phonemes = _tidy(_front_end()(_readable(text)))
    except (IndexError, KeyError, TypeError, ValueError) as error:  # no text is known that leads here
        raise TextError(f"{text!r:.60} cannot be read: {error}; write it in plainer words") from error
    if not any(phone in PHONES for phone in phonemes):
        raise TextError(f"there is nothing to read in {text!r:.60}; give English text, in Latin letters or digits")
    return phonemes


def spell_marks(text: str) -> str:
    """Punctuation by itself, without letters or digits, as `phonemize` leaves it behind a word: one mark, or nothing.

    >>> spell_marks(" … "), spell_marks("?!"), spell_marks('"')
    ('.', '?', '')
    """
    return min((mark for mark in _readable(text) if mark in PAUSES), key=_STRENGTH.index, default="")


@lru_cache(maxsize=1)
def _front_end() -> "G2P":
    """hibari's grapheme-to-phoneme part, without its voice. Takes a second to load, so only when first used."""
    from hibari.g2p import G2P

    return G2P(british=False)


def _readable(text: str) -> str:
    """One line that the front end can read."""
    line = " ".join(normalize(text).translate(_LETTERS).split())
    line = _DASH.sub(", ", _TRAILING_OFF.sub(",", line))
    line = _LONG_NUMBER.sub(lambda number: " ".join(re.findall(r"\d", number[0])), line)
    line = _LONG_WORD.sub(lambda word: _cut(word[0]), line)
    return _LONG_RUN.sub(lambda run: " ".join(_cut(part) for part in re.findall(r"[^\W_]+|[.!?,;:]$", run[0])), line)


def _cut(run: str) -> str:
    return " ".join(re.findall(".{1,24}", run))


def _tidy(phonemes: str) -> str:
    kept = "".join(phone for phone in phonemes.translate(_RARE_PHONES) if phone in PHONEMES)
    marked = _RUN_OF_MARKS.sub(lambda run: min(run[1].replace(" ", ""), key=_STRENGTH.index) + " ", kept)
    tidy = " ".join(marked.split()).lstrip(PAUSES + " ")
    return tidy if tidy.endswith(tuple(PAUSES)) else tidy + "."  # a last initial swallows its full stop
