"""Web addresses, e-mail addresses and file names in English text."""

import re

from higgs_audio.text.english import EXTENSIONS, TOP_LEVEL_DOMAINS

__all__ = ["read_addresses"]

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"(?:{_LABEL}\.){{1,8}}(?:{'|'.join(TOP_LEVEL_DOMAINS)})"
_PATH = r"(?:[/?#][\w\-./?=&%#+~]*[\w/])?"
_URL = re.compile(
    rf"(?<![\w@.])(?:[a-z]{{2,8}}://)?((?:www\.)?{_DOMAIN}(?::\d+)?{_PATH}|www\.[\w.-]+\w{_PATH})(?![\w@])"
)
_EMAIL = re.compile(rf"(?<![\w.@])([\w.+-]{{1,64}})@({_DOMAIN}|{_LABEL}(?:\.{_LABEL}){{1,8}})(?![\w@])")
_FILE = re.compile(rf"(?<![\w.@/])([\w-]{{1,64}}(?:\.[\w-]{{1,32}}){{0,3}})\.({'|'.join(EXTENSIONS)})(?![\w.@/]\w|\w)")
_MARKS = {".": "dot", "/": "slash", "@": "at", "-": "dash", "_": "underscore", "?": "question mark", "=": "equals"}
_MARKS |= {"&": "and", "%": "percent", "#": "hash", "+": "plus", "~": "tilde", ":": "colon"}
_WWW = re.compile(r"\bwww\b")


def read_addresses(text: str) -> str:
    """Replaces the marks of addresses by words; a scheme is left out.

    >>> read_addresses("Visit https://www.example.com/help or write to joe@example.org.")
    'Visit W W W dot example dot com slash help or write to joe at example dot org.'
    """
    if "." not in text:
        return text
    text = _EMAIL.sub(lambda match: f"{_spoken(match[1])} at {_spoken(match[2])}", text)
    text = _URL.sub(lambda match: _spoken(match[1].rstrip("/")), text)
    return _FILE.sub(lambda match: f"{_spoken(match[1])} dot {EXTENSIONS[match[2]]}", text)


def _spoken(address: str) -> str:
    """Returns an address with words for its marks."""
    words = re.sub(r"[^\w]|_", lambda mark: f" {_MARKS.get(mark[0], '')} ", _WWW.sub("W W W", address))
    return " ".join(words.split())
