"""Exact streaming: codes in pieces to samples in pieces, whose concatenation is `decode` of the whole."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from higgs_audio.codec.model import HiggsAudioTokenizer
from higgs_audio.codec.vocos import VocosDecoder, VocosStream
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

    def push(self, codes: Tensor) -> Tensor:
        """The next codes `[K, F]`, F >= 0, to the samples `[S]` that are sounded now; S may be 0."""
        return self._way.push(codes)

    def finish(self) -> Tensor:
        """The samples `[S]` that waited for frames to their right."""
        return self._way.finish()


class _Way(Protocol):
    def push(self, codes: Tensor) -> Tensor: ...

    def finish(self) -> Tensor: ...


class _Memory:
    """The decoder's layers remember; see `VocosStream`."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, body: VocosDecoder) -> None:
        self._tokenizer, self._stream = tokenizer, VocosStream(body)

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        if not codes.shape[1]:
            return torch.zeros(0)
        return self._stream.push(self._tokenizer.acoustic_features(codes[None]))[0, 0]

    @torch.no_grad()
    def finish(self) -> Tensor:
        return self._stream.finish()[0, 0]

    @torch.no_grad()
    def peek(self) -> Tensor:
        """What `finish` would give if nothing came; more may."""
        return self._stream.copy().finish()[0, 0]


class _Hasty:
    """What is certain, and of the rest, as if nothing came behind it, all but the last `ahead` frames."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, body: VocosDecoder, ahead: int) -> None:
        self._memory, self._kept = _Memory(tokenizer, body), ahead * tokenizer.config.hop_length
        self._early = 0  # samples sounded that were not certain

    def push(self, codes: Tensor) -> Tensor:
        certain = self._memory.push(codes)
        likely = self._memory.peek()
        sound = torch.cat([certain, likely[: max(0, len(likely) - self._kept)]])
        new, self._early = sound[self._early :], max(self._early, len(sound)) - len(certain)
        return new

    def finish(self) -> Tensor:
        return self._memory.finish()[self._early :]


class _Window:
    """The decoder sees a fixed number of frames to either side, so a window with that much around it is enough."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, ahead: int) -> None:
        self._tokenizer = tokenizer
        self._left, self._right = tokenizer.decoder_context[0], ahead
        self._window: Tensor | None = None  # [K, frames kept]
        self._done = 0  # frames of the window already sounded

    def push(self, codes: Tensor) -> Tensor:
        window = codes if self._window is None else torch.cat([self._window, codes], dim=1)
        self._window = window
        return self._sound(window.shape[1] - self._right)

    def finish(self) -> Tensor:
        return self._sound(0 if self._window is None else self._window.shape[1])

    def _sound(self, stop: int) -> Tensor:
        """Samples of frames `done..stop` of the window; forgets what no later frame depends on."""
        if self._window is None or stop <= self._done:
            return torch.zeros(0)
        hop = self._tokenizer.config.hop_length
        sound = self._tokenizer.decode(self._window[None]).audio_values
        assert sound is not None
        out = sound[0, 0, self._done * hop : stop * hop]
        forgotten = max(0, stop - self._left)
        self._window, self._done = self._window[:, forgotten:], stop - forgotten
        return out


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
