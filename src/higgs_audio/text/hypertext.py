"""HTML and SSML: which texts are marked up so, and their blocks."""

import re
from html.parser import HTMLParser

from higgs_audio.errors import TextError, nearest
from higgs_audio.text.blocks import Block, BlockBuilder

__all__ = ["HypertextReader", "is_hypertext", "read_hypertext"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HEADINGS = dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6", "title", "caption"), "heading")
_ITEMS = dict.fromkeys(("li", "dt", "dd", "tr", "option"), "item")
_PARAGRAPHS = dict.fromkeys(
    _words(
        "p div section article header footer main aside nav blockquote pre ul ol dl table thead tbody tfoot form "
        "figure figcaption address body html"
    ),
    "paragraph",
)
_BLOCKS = {**_HEADINGS, **_ITEMS, **_PARAGRAPHS}
_INLINE = _words(
    "a abbr b bdi bdo big button cite code data del dfn em font i ins kbd label mark q rp rt ruby s samp small span "
    "strike strong sub sup time tt u var wbr"
)
_UNSPOKEN = _words("script style head template svg math noscript iframe object select audio video canvas")
_VOID = _words("br hr img input meta link area base col embed source track wbr")
_TAGS = frozenset(_BLOCKS) | _INLINE | _UNSPOKEN | _VOID | {"td", "th"}
_TAG = re.compile(rf"</?(?:{'|'.join(sorted(_TAGS, key=len, reverse=True))})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"<(?:{'|'.join(sorted(_BLOCKS, key=len, reverse=True))})[\s/>]", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_COMMENT = re.compile(r"<!--.*?-->|<!DOCTYPE[^>]*>", re.IGNORECASE | re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)
_SPEAK = re.compile(r"\s*(?:<\?xml[^>]*\?>\s*)?<speak[\s>]", re.IGNORECASE)

_SSML = ("speak", "p", "s", "break", "sub", "say-as")
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.8, "x-strong": 1.2}  # seconds
_SPELLED = ("characters", "spell-out", "digits", "telephone", "verbatim")
_AS_WRITTEN = ("cardinal", "number", "date", "time", "currency", "fraction", "unit", "address", "text")
_DURATION = re.compile(r"\s*\+?(\d{1,6}(?:\.\d{1,6})?)\s*(ms|s)\s*", re.IGNORECASE)
_MAX_BREAK = 10.0  # seconds


def is_hypertext(text: str) -> bool:
    """Whether a text has a tag of HTML or SSML, or an entity such as "&amp;".

    >>> is_hypertext("<p>Hello</p>"), is_hypertext("a < b > c"), is_hypertext("<joe@example.org>")
    (True, False, False)
    """
    return any(pattern.search(text) for pattern in (_TAG, _COMMENT, _ENTITY)) or bool(_SPEAK.match(text))


def read_hypertext(text: str) -> list[Block]:
    """Returns the blocks of an HTML or SSML text.

    Of HTML the words are read, also those of unknown tags; blank lines separate paragraphs if no tag does. In SSML,
    `speak`, `p`, `s`, `break`, `sub` and `say-as` are obeyed.

    Raises:
        TextError: another tag in SSML, or a value of `break` or `say-as` that is not supported.

    >>> [(block.text, block.pause) for block in read_hypertext('<speak>One<break time="500ms"/>two</speak>')]
    [('One', 0.5), ('two', None)]
    """
    is_ssml = bool(_SPEAK.match(text))
    builder = BlockBuilder()
    for part in [text] if is_ssml or _BLOCK_TAG.search(text) else _BLANK_LINES.split(text):
        reader = HypertextReader(builder, is_ssml)
        reader.feed(part)
        reader.close()
        builder.end("paragraph")
    return builder.finish()


class HypertextReader(HTMLParser):
    """Writes the text of HTML or SSML into a `BlockBuilder`. It expands no entities but those of HTML."""

    def __init__(self, builder: BlockBuilder, is_ssml: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self.builder, self.is_ssml = builder, is_ssml
        self._unspoken = 0  # open elements whose text is not read
        self._say_as: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if self.is_ssml:
            self._start_ssml(tag, values)
        elif tag in _UNSPOKEN:
            self._unspoken += 1
        elif tag in ("br", "hr"):
            self.builder.end("item" if tag == "br" else "paragraph")
        elif tag in ("td", "th"):
            self.builder.separate()
        elif tag in _BLOCKS:
            self.builder.open(_BLOCKS[tag])
        elif tag not in _TAGS:
            self.builder.write(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.is_ssml:
            self._end_ssml(tag)
        elif tag in _UNSPOKEN:
            self._unspoken = max(0, self._unspoken - 1)
        elif tag in _BLOCKS:
            self.builder.close()

    def handle_data(self, data: str) -> None:
        if not self._unspoken:
            self.builder.write(_spoken_as(data, self._say_as[-1]) if self._say_as else data)

    def _start_ssml(self, tag: str, values: dict[str, str]) -> None:
        if tag not in _SSML:
            raise TextError(f"SSML with <{tag}>, which is not supported; {nearest(tag, _SSML)}")
        if tag == "break":
            self.builder.end("sentence", _break_seconds(values))
        elif tag in ("p", "s"):
            self.builder.open("paragraph" if tag == "p" else "sentence")
        elif tag == "sub":
            self.builder.write(_attribute(tag, values, "alias"))
            self._unspoken += 1
        elif tag == "say-as":
            self._say_as.append(_attribute(tag, values, "interpret-as"))

    def _end_ssml(self, tag: str) -> None:
        if tag in ("p", "s"):
            self.builder.close()
        elif tag == "sub":
            self._unspoken = max(0, self._unspoken - 1)
        elif tag == "say-as" and self._say_as:
            self._say_as.pop()


def _attribute(tag: str, values: dict[str, str], name: str) -> str:
    if not values.get(name):
        raise TextError(f'<{tag}> without {name}; write <{tag} {name}="...">')
    return values[name]


def _break_seconds(values: dict[str, str]) -> float:
    """Returns the seconds of a `break`: its time, or those of its strength."""
    if "time" not in values:
        strength = values.get("strength", "medium")
        if strength not in _STRENGTHS:
            raise TextError(f"<break strength={strength!r:.40}>; {nearest(strength, _STRENGTHS)}")
        return _STRENGTHS[strength]
    duration = _DURATION.fullmatch(values["time"])
    seconds = float(duration[1]) / (1000 if duration[2].lower() == "ms" else 1) if duration else _MAX_BREAK + 1
    if seconds > _MAX_BREAK:
        raise TextError(f"<break time={values['time']!r:.40}>; give 0s to {_MAX_BREAK:g}s, in s or ms")
    return seconds


def _spoken_as(text: str, kind: str) -> str:
    """Returns text as `say-as` asks for: character by character, as an ordinal, or as it is written."""
    if kind in _SPELLED:
        return " " + " ".join(text.upper().split() if kind == "verbatim" else "".join(text.upper().split())) + " "
    if kind == "ordinal" and text.strip().isdigit():
        return _ordinal(int(text))
    if kind in _AS_WRITTEN or kind == "ordinal":
        return text
    raise TextError(f"<say-as interpret-as={kind!r:.40}>; {nearest(kind, (*_SPELLED, *_AS_WRITTEN, 'ordinal'))}")


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
