"""Streaming decoding: chunks of codes to chunks of samples.

The stream defines the output: `HiggsAudio.generate` concatenates the chunks of `HiggsAudio.stream`, which are decoded
here. However the codes are divided into chunks, the concatenated samples equal `HiggsAudioTokenizer.decode` on all
codes at once, up to floating-point rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from higgs_audio.codec.blocks import NativeConvNeXtBlocks, decoder_blocks
from higgs_audio.codec.model import HiggsAudioTokenizer
from higgs_audio.codec.vocos import VocosDecoder
from higgs_audio.codec.vocos_stream import VocosStream, decode_packed
from higgs_audio.errors import OptionError
from higgs_audio.native import one_torch_thread


@dataclass(frozen=True)
class LowLatencyState:
    """The decoder state of a stream, and the number of samples that were returned before they were final."""

    stream: VocosStream
    num_early: int


@dataclass(frozen=True)
class WindowState:
    """The last codes `[K, F]` of a stream, and the number of their frames whose samples were returned."""

    codes: Tensor
    num_returned: int


StreamState: TypeAlias = VocosStream | LowLatencyState | WindowState
S = TypeVar("S", VocosStream, LowLatencyState, WindowState)


class StreamDecoder:
    """Decodes one stream chunk by chunk; a sample is returned once every frame that it depends on is known.

    The acoustic model "vocos" keeps the state of its layers and computes every frame once. "dac" decodes every chunk
    together with the frames around it, as many as `decoder_context` returns.

    Args:
        tokenizer: the audio tokenizer of the codes.
        look_ahead: later frames that must be known before a sample is returned; None for all that it depends on. With
            fewer, samples are returned sooner and are approximate: the decoder treats unknown frames as the end of the
            stream. docs/measurements.md has the error.

    Raises:
        OptionError: a negative look-ahead.
    """

    def __init__(self, tokenizer: HiggsAudioTokenizer, look_ahead: int | None = None) -> None:
        full = tokenizer.decoder_context[1]
        if look_ahead is not None and (not isinstance(look_ahead, int) or look_ahead < 0):
            raise OptionError(f"look_ahead={look_ahead!r}; give a whole number of frames, 0 or more, or None for all")
        ahead = full if look_ahead is None else min(look_ahead, full)
        decoder = tokenizer.acoustic_decoder
        if not isinstance(decoder, VocosDecoder):
            self._strategy: _Strategy[Any] = _Windowed(tokenizer, ahead)
        else:
            self._strategy = _Stateful(tokenizer, decoder) if ahead == full else _LowLatency(tokenizer, decoder, ahead)

    @property
    def state(self) -> StreamState:
        """The state of the stream. It is never modified: assigning an earlier state rewinds the stream to it."""
        state: StreamState = self._strategy.state
        return state

    @state.setter
    def state(self, state: StreamState) -> None:
        self._strategy.state = state

    def push(self, codes: Tensor, is_last: bool = False) -> Tensor:
        """Decodes the next codes `[K, F]`, F >= 0, and returns the samples `[S]` that are ready; S may be 0.

        With `is_last` it returns all remaining samples, and no codes may follow.

        Raises:
            CodesError: codes of another shape, dtype or range.
        """
        return push_many([self], [codes], [is_last])[0]

    def finish(self) -> Tensor:
        """Ends the stream and returns the remaining samples `[S]`."""
        return self.push(self._strategy.no_codes, True)


@torch.no_grad()
def push_many(decoders: Sequence[StreamDecoder], codes: Sequence[Tensor], last: Sequence[bool]) -> list[Tensor]:
    """Calls `push` on several streams of one tokenizer in one batch.

    The samples are those of `push`, up to floating-point rounding, which depends on the batch. If the call fails, all
    streams keep their earlier state.

    Args:
        decoders: distinct decoders of one tokenizer.
        codes: the next codes `[K, F]` of every stream, F >= 0.
        last: whether the stream ends with these codes.

    Returns:
        The samples `[S]` of every stream that are ready.

    Raises:
        CodesError: codes of another shape, dtype or range.
    """
    groups: dict[type[_Strategy[Any]], list[int]] = {}
    for i, decoder in enumerate(decoders):
        groups.setdefault(type(decoder._strategy), []).append(i)
    samples, states = dict[int, Tensor](), dict[int, StreamState]()
    for kind, indices in groups.items():
        strategies = [decoders[i]._strategy for i in indices]
        outputs = kind.decode_batch(strategies, [codes[i] for i in indices], [last[i] for i in indices])
        for i, (part, state) in zip(indices, outputs, strict=True):
            samples[i], states[i] = part, state
    for i, decoder in enumerate(decoders):
        decoder.state = states[i]
    return [samples[i] for i in range(len(decoders))]


class _Strategy(ABC, Generic[S]):
    """A method of decoding a stream.

    Attributes:
        tokenizer: the audio tokenizer of the codes.
        state: state of the stream; replaced, never modified in place.
    """

    state: S

    def __init__(self, tokenizer: HiggsAudioTokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    def no_codes(self) -> Tensor:
        """Codes `[K, 0]`."""
        return torch.zeros(self.tokenizer.config.num_codebooks, 0, dtype=torch.long, device=self.tokenizer.device)

    @classmethod
    @abstractmethod
    def decode_batch(
        cls, strategies: Sequence[Self], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, S]]:
        """Returns the samples and the new state of every stream; changes none of them."""


class _Stateful(_Strategy[VocosStream]):
    """Keeps the state of the decoder's layers."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, decoder: VocosDecoder) -> None:
        super().__init__(tokenizer)
        self.state = VocosStream(decoder)

    @classmethod
    def decode_batch(
        cls, strategies: Sequence[Self], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, VocosStream]]:
        return _decode_vocos(strategies[0].tokenizer, [strategy.state for strategy in strategies], codes, last)


def _decode_vocos(
    tokenizer: HiggsAudioTokenizer, states: Sequence[VocosStream], codes: Sequence[Tensor], last: Sequence[bool]
) -> list[tuple[Tensor, VocosStream]]:
    """Returns the samples and the new state of every stream."""
    streams, sizes = [state.copy() for state in states], [part.shape[1] for part in codes]
    weight = streams[0].decoder.embed.weight
    no_features = weight.new_zeros(1, weight.shape[1], 0)
    with one_torch_thread(isinstance(decoder_blocks(streams[0].decoder), NativeConvNeXtBlocks)):
        features = tokenizer.acoustic_features(torch.cat(list(codes), dim=1)[None]) if sum(sizes) else no_features
        samples = decode_packed(streams, features[0].T.split(sizes), last)
    return list(zip(samples, streams, strict=True))


class _LowLatency(_Strategy[LowLatencyState]):
    """Returns samples before they are final: decodes as if the stream ended here, but withholds `ahead` frames."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, decoder: VocosDecoder, ahead: int) -> None:
        super().__init__(tokenizer)
        self._num_withheld = ahead * tokenizer.config.hop_length
        self.state = LowLatencyState(VocosStream(decoder), 0)

    @classmethod
    def decode_batch(
        cls, strategies: Sequence[Self], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, LowLatencyState]]:
        parts = zip(strategies, codes, last, strict=True)
        return [strategy._decode(part, is_last) for strategy, part, is_last in parts]

    def _decode(self, codes: Tensor, is_last: bool) -> tuple[Tensor, LowLatencyState]:
        num_early = self.state.num_early
        ((final, stream),) = _decode_vocos(self.tokenizer, [self.state.stream], [codes], [is_last])
        if is_last:
            return final[num_early:], LowLatencyState(stream, 0)
        ((provisional, _),) = _decode_vocos(self.tokenizer, [stream], [self.no_codes], [True])
        samples = torch.cat([final, provisional[: max(0, len(provisional) - self._num_withheld)]])
        return samples[num_early:], LowLatencyState(stream, max(num_early, len(samples)) - len(final))


class _Windowed(_Strategy[WindowState]):
    """Decodes the new frames within a window that has the decoder's context on both sides."""

    def __init__(self, tokenizer: HiggsAudioTokenizer, ahead: int) -> None:
        super().__init__(tokenizer)
        self._left, self._right = tokenizer.decoder_context[0], ahead
        self.state = WindowState(self.no_codes, 0)

    @classmethod
    def decode_batch(
        cls, strategies: Sequence[Self], codes: Sequence[Tensor], last: Sequence[bool]
    ) -> list[tuple[Tensor, WindowState]]:
        windows = [
            torch.cat([strategy.state.codes, part], dim=1) for strategy, part in zip(strategies, codes, strict=True)
        ]
        stops = [
            window.shape[1] - (0 if is_last else strategy._right)
            for strategy, window, is_last in zip(strategies, windows, last, strict=True)
        ]
        ready = [i for i, strategy in enumerate(strategies) if stops[i] > strategy.state.num_returned]
        decoded = dict(zip(ready, _decode_windows(strategies[0].tokenizer, [windows[i] for i in ready]), strict=True))
        return [
            strategy._cut(windows[i], stops[i], decoded[i])
            if i in decoded
            else (torch.zeros(0, device=windows[i].device), WindowState(windows[i], strategy.state.num_returned))
            for i, strategy in enumerate(strategies)
        ]

    def _cut(self, window: Tensor, stop: int, samples: Tensor) -> tuple[Tensor, WindowState]:
        """Returns the samples of the new frames before `stop`, and the state without frames no longer needed."""
        num_returned, hop = self.state.num_returned, self.tokenizer.config.hop_length
        num_dropped = max(0, stop - self._left)
        return samples[num_returned * hop : stop * hop], WindowState(window[:, num_dropped:], stop - num_dropped)


def _decode_windows(tokenizer: HiggsAudioTokenizer, windows: Sequence[Tensor]) -> list[Tensor]:
    """Decodes codes `[K, F]` to samples `[F * hop_length]`; windows of equal length share a batch."""
    samples: dict[int, Tensor] = {}
    for length in {window.shape[1] for window in windows}:
        indices = [i for i, window in enumerate(windows) if window.shape[1] == length]
        values = tokenizer.decode(torch.stack([windows[i] for i in indices])).audio_values
        samples |= dict(zip(indices, values[:, 0], strict=True))
    return [samples[i] for i in range(len(windows))]


def decode_stream(tokenizer: HiggsAudioTokenizer, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Decodes chunks of codes `[K, F]` to chunks of samples `[S]`; their concatenation equals `decode` of all codes.

    Raises:
        CodesError: codes of another shape, dtype or range.
    """
    decoder = StreamDecoder(tokenizer)
    for chunk in chunks:
        samples = decoder.push(chunk)
        if len(samples):
            yield samples
    samples = decoder.finish()
    if len(samples):
        yield samples
