"""Texts on their way through the engine: utterances are asked for, a few ahead, and sounded one after another."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from higgs_audio.engine import Engine
from higgs_audio.errors import HiggsAudioError
from higgs_audio.prompt.prompt import Turn
from higgs_audio.speech.decode_queue import DecodeJob, DecodeQueue
from higgs_audio.speech.request import SPEAKER, RequestBuilder, SpeechRequest
from higgs_audio.speech.result import Chunk, Speech, SpeechBuilder

UTTERANCES_AHEAD = 4  # utterances of a text that are asked for at once, where nobody waits for the first sound
TOGETHER = 24  # texts that are spoken at once: sixteen, and the eight that wait to be sounded together


class SpeechStream:
    """One text: iterating gives its chunks of sound; closing it ends the work.

    Each utterance is asked for in the voice of the request. Where there is none, the first utterance comes before all
    others as a turn already spoken, or every one would be spoken by somebody else.

    Args:
        request: what to say. Nothing is asked for before the first chunk is, or `begin` is called.
        engine, writer, desk: of a checkpoint.
        ahead: utterances that are asked for at once, where none depends on another.
        soon, look_ahead: see `DecodeQueue.open`.
    """

    def __init__(
        self,
        request: SpeechRequest,
        engine: Engine,
        writer: RequestBuilder,
        desk: DecodeQueue,
        *,
        ahead: int = 1,
        soon: bool = True,
        look_ahead: int | None = None,
    ) -> None:
        self._request, self._engine, self._writer, self._desk = request, engine, writer, desk
        self._soon, self._look_ahead = soon, look_ahead
        self._ahead = ahead if request.is_free else 1
        self._asked: dict[int, DecodeJob] = {}
        self._is_stopped = False
        self._spoken: tuple[Turn, ...] = ()
        self._left = request.max_frames
        self._chunks = self._speak()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def begin(self) -> "SpeechStream":
        """Asks for its first utterances, so that they are made beside others; raises what `Engine.submit` does."""
        try:
            self._ask(0)
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Ends it at the next step, from any thread: whoever waits for its next chunk gets no more."""
        self._is_stopped = True
        for sounding in list(self._asked.values()):
            sounding.answer.cancel()

    def close(self) -> None:
        """Ends what is not done."""
        self._chunks.close()
        self.stop()
        for sounding in list(self._asked.values()):
            self._desk.close(sounding)

    def _speak(self) -> Generator[Chunk, None, None]:
        for number in range(len(self._request.utterances)):
            if self._left == 0:
                yield self._nothing("length")
                return
            self._ask(number)
            codes = []
            for chunk in self._desk.chunks(self._asked[number]):
                codes.append(chunk.codes)
                yield chunk
            if self._is_stopped:
                return
            del self._asked[number]
            self._said(number, torch.cat(codes, dim=1).numpy())

    def _said(self, number: int, codes: np.ndarray) -> None:
        """An utterance, `[K, F]`, is over."""
        self._left = None if self._left is None else self._left - codes.shape[1]
        if self._request.voice is None and not self._spoken:
            self._spoken = (Turn(self._request.utterances[number], SPEAKER, codes),)

    def _ask(self, first: int) -> None:
        """Asks for an utterance and, where they can be, for the next ones; what is wrong with those is told in turn."""
        last = min(first + self._ahead, len(self._request.utterances))
        for number in range(first, last):
            if number in self._asked:
                continue
            try:
                written = self._writer.write(self._request, number, self._spoken, self._left)
                answer = self._engine.submit(replace(written, is_offline=not self._soon))
                self._asked[number] = self._desk.open(answer, self._soon, self._look_ahead)
            except HiggsAudioError:
                if number == first:
                    raise
                return
            if self._is_stopped:
                self._asked[number].answer.cancel()

    def _nothing(self, reason: str) -> Chunk:
        return Chunk(np.zeros(0, np.float32), torch.zeros(self._desk.codec.config.num_codebooks, 0).long(), reason)


def stream_many(
    requests: Iterable[SpeechRequest], recital_of: Callable[[SpeechRequest], SpeechStream], sample_rate: int
) -> Generator[tuple[int, Speech | HiggsAudioError], None, None]:
    """Speaks many texts, `TOGETHER` at once: each one's number and its speech or error, as they are done.

    Args:
        requests: asked for one as room is made, so there may be any number of them.
        recital_of: makes one of a request.
        sample_rate: of the sound.

    Closing the iterator ends the work.
    """
    waiting, speaking = enumerate(requests), dict[int, tuple[SpeechStream, SpeechBuilder]]()
    try:
        while True:
            while len(speaking) < TOGETHER and (following := next(waiting, None)) is not None:
                number, request = following
                try:
                    speaking[number] = recital_of(request).begin(), SpeechBuilder(sample_rate)
                except HiggsAudioError as error:
                    yield number, error
            if not speaking:
                return
            for number, (recital, said) in list(speaking.items()):
                result = _go_on(recital, said)
                if result is not None:
                    speaking.pop(number)[0].close()
                    yield number, result
    finally:
        for recital, _ in speaking.values():
            recital.close()


def _go_on(recital: SpeechStream, said: SpeechBuilder) -> Speech | HiggsAudioError | None:
    """One chunk more; the speech when there is none, or the error that ended it."""
    try:
        chunk = next(recital, None)
    except HiggsAudioError as error:
        return error
    if chunk is None:
        return said.speech()
    said.add(chunk)
    return None


def stream_speech(recital: SpeechStream) -> Generator[Chunk, None, None]:
    """Its chunks; what is not done when nobody wants more is ended."""
    with closing(recital):
        yield from recital
