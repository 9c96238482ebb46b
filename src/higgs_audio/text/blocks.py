"""Blocks of a document: paragraphs, headings, list items and lines, with the pauses that the author asked for."""

from dataclasses import dataclass, field

__all__ = ["BREAKS", "Block", "BlockBuilder"]

# Kinds of boundaries after a block, from the weakest to the strongest.
BREAKS = ("sentence", "item", "paragraph", "heading")


@dataclass(frozen=True)
class Block:
    """A piece of text without line breaks.

    Attributes:
        text: words and marks; runs of whitespace are single spaces.
        kind: the kind of boundary after it, one of `BREAKS`.
        pause: seconds of pause after it that the author wrote; None for the usual pause of its kind.
    """

    text: str
    kind: str = "paragraph"
    pause: float | None = None


@dataclass
class BlockBuilder:
    """Collects text into blocks while a document is read from start to end."""

    blocks: list[Block] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def has_text(self) -> bool:
        """Whether the current block has more than spaces."""
        return any(part.strip() for part in self.parts)

    def write(self, text: str) -> None:
        """Appends text to the current block."""
        self.parts.append(text)

    def open(self, kind: str) -> None:
        """Begins a block of a kind; the text before it is a block of its own."""
        if self.has_text:
            self.end(self.kinds[-1] if self.kinds else "paragraph")
        self.kinds.append(kind)

    def separate(self) -> None:
        """Begins a cell of a row: a comma after the cells before it."""
        if self.has_text:
            self.write(", ")

    def close(self) -> None:
        """Ends the block that was opened last."""
        self.end(self.kinds.pop() if self.kinds else "paragraph")

    def end(self, kind: str, pause: float | None = None) -> None:
        """Ends the current block with a boundary of a kind, or with a pause of its own."""
        text = " ".join("".join(self.parts).split())
        self.parts.clear()
        if text:
            self.blocks.append(Block(text, kind, pause))
        elif self.blocks:
            self.blocks[-1] = _strengthened(self.blocks[-1], kind, pause)

    def finish(self) -> list[Block]:
        """Returns all blocks."""
        self.end("paragraph")
        return self.blocks


def _strengthened(block: Block, kind: str, pause: float | None) -> Block:
    """Returns the block with the stronger of two boundaries; a written pause replaces the usual one, pauses add up."""
    stronger = max(block.kind, kind, key=BREAKS.index)
    if pause is None:
        return Block(block.text, stronger, block.pause)
    return Block(block.text, stronger, pause + (block.pause or 0.0))
