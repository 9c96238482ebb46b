"""Exact streaming: codes in pieces to samples in pieces, whose concatenation is `decode` of the whole."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from higgs_audio.codec.model import HiggsAudioTokenizer
from higgs_audio.codec.vocos import VocosDecoder
from higgs_audio.codec.vocos_stream import VocosStream, sound_together
from higgs_audio.errors import OptionError


class StreamDecoder:
    """Decodes one stream piece by piece; a sample is sounded once every frame it depends on is known.

    Each piece is computed once where the body can remember ("vocos"); otherwise ("dac") with its neighbours around it,
    as many frames as `decoder_context` says.

    Args:
        tokenizer: whose codes they are.
        look_ahead: frames that a sample waits for; all that it depends on when None. Fewer come sooner and are not
            exact: the frames behind them are taken for the end of the sound. docs/measurements.md has the error.

    Raises:
        OptionError: a negative look-ahead.
    """

    def __init__(self, tokenizer: HiggsAudioTokenizer, look_ahead: int | None = None) -> None:
        whole = tokenizer.decoder_context[1]
        if look_ahead is not None and (not isinstance(look_ahead, int) or look_ahead < 0):
            raise OptionError(f"look_ahead={look_ahead!r}; give a whole number of frames, 0 or more, or None for all")
        ahead = whole if look_ahead is None else min(look_ahead, whole)
        body = tokenizer.acoustic_decoder
        if not isinstance(body, VocosDecoder):
            self._way: _Way = _Window(tokenizer, ahead)
        else:
            self._way = _Memory(tokenizer, body) if ahead == whole else _Hasty(tokenizer, body, ahead)

    @property
    def state(self) -> Any:
        """What is remembered: it can be kept, and set to go on from there once more."""
        return self._way.state

    @state.setter
    def state(self, state: Any) -> None:
        self._way.state = state

    def push(self, codes: Tensor, is_last: bool = False) -> Tensor:
        """The next codes `[K, F]`, F >= 0, to the samples `[S]` that are sounded now; S may be 0.

        With the last ones comes what waited for frames to its right, and nothing may follow.
        """
        return push_many([self], [codes], [is_last])[0]

    def finish(self) -> Tensor:
        """The samples `[S]` that waited for frames to their right."""
        return self.push(self._way.no_codes, True)


@torch.no_grad()
def push_many(decoders: Sequence[StreamDecoder], codes: Sequence[Tensor], last: Sequence[bool]) -> list[Tensor]:
    """`push` of several streams of one tokenizer, no one twice, in few large operations.

    The samples are those of `push` but for rounding, which depends on how much is added up at once. Where it fails, all
    streams are as they were.
    """
    kinds: dict[type[_Way], list[int]] = {}
    for number, decoder in enumerate(decoders):
        kinds.setdefault(type(decoder._way), []).append(number)
    sounds, states = dict[int, Tensor](), dict[int, Any]()
    for kind, numbers in kinds.items():
        ways = [decoders[number]._way for number in numbers]
        made = kind.together(ways, [codes[number] for number in numbers], [last[number] for number in numbers])
        for number, (sound, state) in zip(numbers, made, strict=True):
            sounds[number], states[number] = sound, state
    for number, decoder in enumerate(decoders):
        decoder.state = states[number]
    return [sounds[number] for number in range(len(decoders))]


class _Way(ABC):
    """How streams are decoded.

    Attributes:
        tokenizer: whose codes they are.
        state: what is remembered; replaced, never written to.
    """

    state: Any

    def __init__(self, tokenizer: HiggsAudioTokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    def no_codes(self) -> Tensor:
        """`[K, 0]`."""
        return torch.zeros(self.tokenizer.config.num_codebooks, 0, dtype=torch.long, device=self.tokenizer.device)

    @classmethod
    @abstractmethod
    def together(cls, ways: Sequence[Any], codes: Sequence[Tensor], last: Sequence[bool]) -> list[tuple[Tensor, Any]]:
        """The samples and the new state of each."""


class _Memory(_Way):
    """The decoder's layers remember; the state is a `VocosStream`."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, body: VocosDecoder) -> None:
        super().__init__(tokenizer)
        self.state = VocosStream(body)

    @classmethod
    def together(
        cls, ways: Sequence["_Memory"], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, Any]]:
        streams, sizes = [way.state.copy() for way in ways], [part.shape[1] for part in codes]
        tokenizer = ways[0].tokenizer
        weight = streams[0].decoder.embed.weight
        nothing = weight.new_zeros(1, weight.shape[1], 0)
        whole = tokenizer.acoustic_features(torch.cat(list(codes), dim=1)[None]) if sum(sizes) else nothing
        sounds = sound_together(streams, whole[0].T.split(sizes), last)
        return list(zip(sounds, streams, strict=True))


class _Hasty(_Way):
    """What is certain, and of the rest, as if nothing came behind it, all but the last `ahead` frames.

    The state is that of a `_Memory`, and how many samples were sounded that were not certain.
    """

    def __init__(self, tokenizer: HiggsAudioTokenizer, body: VocosDecoder, ahead: int) -> None:
        super().__init__(tokenizer)
        self._kept = ahead * tokenizer.config.hop_length
        self.state = VocosStream(body), 0

    @classmethod
    def together(
        cls, ways: Sequence["_Hasty"], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, Any]]:
        return [way._push(part, is_last) for way, part, is_last in zip(ways, codes, last, strict=True)]

    def _push(self, codes: Tensor, is_last: bool) -> tuple[Tensor, Any]:
        (stream, early), memory = self.state, _Memory(self.tokenizer, self.state[0].decoder)
        memory.state = stream
        ((certain, stream),) = _Memory.together([memory], [codes], [is_last])
        if is_last:
            return certain[early:], (stream, 0)
        memory.state = stream
        ((likely, _),) = _Memory.together([memory], [self.no_codes], [True])
        sound = torch.cat([certain, likely[: max(0, len(likely) - self._kept)]])
        return sound[early:], (stream, max(early, len(sound)) - len(certain))


class _Window(_Way):
    """The decoder sees a fixed number of frames to either side, so a window with that much around it is enough.

    The state is the window `[K, frames]`, and how many of its frames have been sounded.
    """

    def __init__(self, tokenizer: HiggsAudioTokenizer, ahead: int) -> None:
        super().__init__(tokenizer)
        self._left, self._right = tokenizer.decoder_context[0], ahead
        self.state = self.no_codes, 0

    @classmethod
    def together(
        cls, ways: Sequence["_Window"], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, Any]]:
        windows = [torch.cat([way.state[0], part], dim=1) for way, part in zip(ways, codes, strict=True)]
        stops = [
            window.shape[1] - (0 if is_last else way._right)
            for way, window, is_last in zip(ways, windows, last, strict=True)
        ]
        heard = [number for number, way in enumerate(ways) if stops[number] > way.state[1]]
        sounds = dict(zip(heard, _decoded(ways[0].tokenizer, [windows[number] for number in heard]), strict=True))
        return [
            way._cut(windows[number], stops[number], sounds[number])
            if number in sounds
            else (torch.zeros(0, device=windows[number].device), (windows[number], way.state[1]))
            for number, way in enumerate(ways)
        ]

    def _cut(self, window: Tensor, stop: int, sound: Tensor) -> tuple[Tensor, Any]:
        """Samples of frames `done..stop` of the window; forgets what no later frame depends on."""
        done, hop = self.state[1], self.tokenizer.config.hop_length
        forgotten = max(0, stop - self._left)
        return sound[done * hop : stop * hop], (window[:, forgotten:], stop - forgotten)


def _decoded(tokenizer: HiggsAudioTokenizer, windows: Sequence[Tensor]) -> list[Tensor]:
    """Codes `[K, F]` to samples `[F * hop_length]`, windows of one length in one batch."""
    sounds: dict[int, Tensor] = {}
    for length in {window.shape[1] for window in windows}:
        numbers = [number for number, window in enumerate(windows) if window.shape[1] == length]
        values = tokenizer.decode(torch.stack([windows[number] for number in numbers])).audio_values
        assert values is not None
        sounds |= dict(zip(numbers, values[:, 0], strict=True))
    return [sounds[number] for number in range(len(windows))]


def decode_stream(tokenizer: HiggsAudioTokenizer, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Chunks of codes `[K, F]` to chunks of samples `[S]`; their concatenation equals `decode` of the whole."""
    decoder = StreamDecoder(tokenizer)
    for chunk in chunks:
        sound = decoder.push(chunk)
        if len(sound):
            yield sound
    sound = decoder.finish()
    if len(sound):
        yield sound
