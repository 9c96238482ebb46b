"""Character tables for `str.translate`, and `fold`, which replaces typographic characters by plain ones."""

import unicodedata

__all__ = ["JOINERS", "CharacterTable", "fold"]

JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of Persian and Hindi words

# The characters that the published examples replace, and similar ones. Two choices are ours: title marks become quotes,
# because as < and > they could form a special token; and a dash gets spaces, so that it is a pause.
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
# Kinds of compatibility characters that are read like their plain form. Not among them: ² and ½, read differently.
_PLAIN_KINDS = ("<font>", "<wide>", "<narrow>", "<square>", "<noBreak>")
_LIGATURES = range(0xFB00, 0xFB07)


class CharacterTable(dict[int, str]):
    """A table for `str.translate` that computes the replacement of each character once."""

    def __missing__(self, code: int) -> str:
        self[code] = self.replacement(chr(code))
        return self[code]

    def replacement(self, character: str) -> str:
        """Returns the string that replaces a character."""
        raise NotImplementedError


class _FoldingTable(CharacterTable):
    """Character -> its plain form; invisible characters and lone surrogates -> an empty string."""

    def replacement(self, character: str) -> str:
        if character in _PUNCTUATION:
            return _PUNCTUATION[character]
        kind = unicodedata.decomposition(character).partition(" ")[0]
        if kind in _PLAIN_KINDS or ord(character) in _LIGATURES:
            return unicodedata.normalize("NFKC", character)
        category = unicodedata.category(character)
        if category == "Zs" or character == "\t":
            return " "
        return "" if category.startswith("C") and character not in JOINERS else character


_FOLDING = _FoldingTable()


def fold(text: str) -> str:
    """Replaces typographic, full-width and invisible characters by their plain form; keeps the lines.

    >>> fold("“Ｈｅｌｌｏ”…")
    '"Hello"...'
    """
    return "\n".join(unicodedata.normalize("NFC", line.translate(_FOLDING)) for line in text.splitlines())
