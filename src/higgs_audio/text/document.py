"""Documents: Markdown, HTML, SSML or plain text, as blocks whose boundaries are heard as pauses."""

import re

from higgs_audio.text.blocks import Block, BlockBuilder
from higgs_audio.text.hypertext import is_hypertext, read_hypertext
from higgs_audio.text.markdown import is_markdown, read_markdown

__all__ = ["read_document"]

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_BROKEN_WORD = re.compile(r"(?<=[^\W\d_])-\n[^\S\n]*(?=[a-z]+(?!\w*-))")
# Characters of a line that may be a heading or an item; lines of wrapped prose are longer.
_MAX_LINE, _MAX_CERTAIN_LINE = 60, 40
_OPEN_END = re.compile(r"[^\s.!?,;:…—–-][\"'”’)\]]*$")  # a line whose sentence is not finished by a mark
_NEW_START = re.compile(r"[\"'“‘(\[]*[A-Z0-9À-ÖØ-Þ•]")


def read_document(text: str) -> list[Block]:
    """Returns the blocks of a text. Their words are the words of the text, in order, without markup.

    Plain text has a block for each paragraph, and for each short line that no mark ends before a line that begins
    anew: a heading, an item, a verse. Other line breaks are spaces, and a word that was divided at the end of a line is
    joined.

    Raises:
        TextError: SSML that is not supported, see `read_hypertext`.

    >>> [(block.text, block.kind) for block in read_document("Buy\\nMilk\\nBread\\n\\nThat is all, I be-\\nlieve.")]
    [('Buy', 'item'), ('Milk', 'item'), ('Bread', 'paragraph'), ('That is all, I believe.', 'paragraph')]
    """
    text = "\n".join(text.splitlines())
    if is_markdown(text):
        return read_markdown(text)
    if is_hypertext(text):
        return read_hypertext(text)
    builder = BlockBuilder()
    for paragraph in _PARAGRAPH.split(_BROKEN_WORD.sub("", text)):
        _read_paragraph([line.strip() for line in paragraph.split("\n") if line.strip()], builder)
    return builder.finish()


def _read_paragraph(lines: list[str], builder: BlockBuilder) -> None:
    width = max(map(len, lines), default=0)
    for number, line in enumerate(lines):
        builder.write(line + " ")
        following = lines[number + 1] if number + 1 < len(lines) else None
        if following is None:
            builder.end("paragraph")
        elif _is_line_of_its_own(line, following, width):
            builder.end("heading" if number == 0 and len(following) > _MAX_LINE else "item")


def _is_line_of_its_own(line: str, following: str, width: int) -> bool:
    """Whether a line was ended on purpose; a line of prose ends where the next word exceeds the width of the text."""
    if not _OPEN_END.search(line) or not _NEW_START.match(following):
        return False
    is_early = len(line) + 1 + len(following.split()[0]) <= width
    return len(line) <= (_MAX_LINE if is_early else _MAX_CERTAIN_LINE)
