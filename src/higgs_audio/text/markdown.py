"""Markdown: which texts are Markdown, and their blocks."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from higgs_audio.text.blocks import Block, BlockBuilder
from higgs_audio.text.hypertext import HypertextReader

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

__all__ = ["is_markdown", "read_markdown"]

# Each is certain enough alone. Ordinary text has stars between numbers, underscores in names, and may begin "1. ".
_CERTAIN = re.compile(
    r"^ {0,3}#{1,6} +\S|^ {0,3}> ?\S|^ {0,3}(?:```|~~~)"  # headings, quotes, fences
    r"|\*\*[^\s*](?:[^*\n]*[^\s*])?\*\*|(?<!\w)__[^\s_](?:[^_\n]*[^\s_])?__(?!\w|\.\w)|~~[^\s~][^~\n]*~~"
    r"|(?<![\w*])\*[^\W\d_](?:[^*\n]*[^\s*])?\*(?![\w*])|(?<![\w_])_[^\W\d_](?:[^_\n]*[^\s_])?_(?![\w_])"
    r"|`[^`\n]+`|!?\[[^\]\n]*\]\([^)\s]+(?: \"[^\"\n]*\")?\)"  # code, links
    r"|^ {0,3}\|?(?: *:?-{3,}:? *\|)+(?: *:?-{3,}:? *)?$|^ {0,3}(?:[=-]{3,}|\*{3,}|_{3,}) *$",  # tables, rules
    re.MULTILINE,
)
_LIST_ITEM = re.compile(r"^ {0,8}(?:[-*+•]|\d{1,3}[.)]) +\S", re.MULTILINE)
_MIN_ITEMS = 2  # a single line that begins with "- " or "1. " may be a dialogue or a sentence
_KINDS = {"heading_open": "heading", "list_item_open": "item", "paragraph_open": "", "tr_open": "item"}
_CLOSED = {"heading_close", "list_item_close", "tr_close"}


def is_markdown(text: str) -> bool:
    """Whether a text has the marks of Markdown.

    >>> is_markdown("# Title"), is_markdown("2 * 3 * 4 is snake_case #1")
    (True, False)
    """
    return bool(_CERTAIN.search(text)) or len(_LIST_ITEM.findall(text)) >= _MIN_ITEMS


def read_markdown(text: str) -> list[Block]:
    """Returns the blocks of a Markdown text: its words without marks and link targets, tables cell by cell.

    >>> [(block.text, block.kind) for block in read_markdown("# News\\n\\n- *One* item\\n- A [link](https://a.b)")]
    [('News', 'heading'), ('One item', 'item'), ('A link', 'paragraph')]
    """
    builder = BlockBuilder()
    for token in _parser().parse(text.replace("•", "-") if _LIST_ITEM.search(text) else text):
        _read_block(token, builder)
    return builder.finish()


@lru_cache(maxsize=1)
def _parser() -> "MarkdownIt":
    """Returns CommonMark with tables and strikethrough; indented text is no code, because prose is often indented."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable("code")


def _read_block(token: "Token", builder: BlockBuilder) -> None:
    if _KINDS.get(token.type):
        builder.open(_KINDS[token.type])
    elif token.type in _CLOSED:
        builder.close()
    elif token.type == "inline":
        for child in token.children or []:
            _read_inline(child, builder)
    elif token.type in ("td_open", "th_open"):
        builder.separate()
    elif token.type in ("fence", "html_block"):
        _read_html(token.content, builder) if token.type == "html_block" else builder.write(token.content)
        builder.end("paragraph")
    elif token.type in ("paragraph_close", "hr", "bullet_list_close", "ordered_list_close", "table_close"):
        builder.end(builder.kinds[-1] if token.type == "paragraph_close" and builder.kinds else "paragraph")


def _read_inline(token: "Token", builder: BlockBuilder) -> None:
    if token.type in ("text", "code_inline"):
        builder.write(token.content)
    elif token.type == "softbreak":
        builder.write(" ")
    elif token.type == "hardbreak":
        builder.end("item")
    elif token.type == "image":
        builder.write(token.content)
    elif token.type == "html_inline":
        _read_html(token.content, builder)


def _read_html(content: str, builder: BlockBuilder) -> None:
    reader = HypertextReader(builder)
    reader.feed(content)
    reader.close()
