"""Options for rendering a conversation: their defaults, and their type as keyword arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import TypedDict

from higgs_audio.errors import OptionError, nearest


@dataclass(frozen=True)
class RenderOptions:
    """How conversations are rendered and encoded.

    Attributes:
        add_generation_prompt: whether to end with an assistant header; False for a complete training example.
        force_audio: whether to end with the token that opens an audio segment, as transformers' template does.
        start_index: index of the first trained message; a list has one for each conversation.
        allow_special: encode special tokens in a text as plain text instead of rejecting them; generation instruction
            tags in user and assistant texts then become tokens.
        piecewise: tokenize each text separately, as the original code does, instead of joining adjacent texts.
        sampling_rate: rate of audio given as arrays without a rate, in Hz; the processor's `sampling_rate` when None.
        style: "original", the prompts of Boson's code, with which the published weights were trained, or
            "transformers", the prompts of the template published for transformers. They differ in which texts are
            trimmed and in the tokens around the audio of a scene; the second always opens an audio segment.
        allow_private_urls: whether URLs may resolve to private addresses; as in the processor's `limits` when None.
    """

    add_generation_prompt: bool = True
    force_audio: bool = False
    start_index: int | Sequence[int | None] | None = None
    allow_special: bool = False
    piecewise: bool = False
    sampling_rate: int | None = None
    style: str = "original"
    allow_private_urls: bool | None = None


class RenderKeywords(TypedDict, total=False):
    """The fields of `RenderOptions`, which documents them, as keyword arguments."""

    add_generation_prompt: bool
    force_audio: bool
    start_index: int | Sequence[int | None] | None
    allow_special: bool
    piecewise: bool
    sampling_rate: int | None
    style: str
    allow_private_urls: bool | None


def read_render_options(options: Mapping[str, Any]) -> RenderOptions:
    """Returns the options of a call.

    Raises:
        OptionError: an unknown option.
    """
    known = [field.name for field in fields(RenderOptions)]
    if unknown := [name for name in options if name not in known]:
        raise OptionError(f"unknown option {unknown[0]!r}; {nearest(unknown[0], known)}")
    return RenderOptions(**options)
