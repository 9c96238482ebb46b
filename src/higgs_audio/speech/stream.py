"""Speech streams: submit the utterances of a text to the engine, some of them ahead, and yield the chunks in order."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from typing_extensions import Self

from higgs_audio.engine import Engine
from higgs_audio.errors import HiggsAudioError
from higgs_audio.prompt.prompt import Turn
from higgs_audio.speech.decode_queue import DecodeJob, DecodeQueue
from higgs_audio.speech.request import SPEAKER, RequestBuilder, SpeechRequest
from higgs_audio.speech.result import Chunk, Speech, SpeechBuilder
from higgs_audio.speech.silence import (
    LEAD_FRAMES,
    leading_silence,
    num_silent_frames,
    silent_level,
    trailing_silence,
)

UTTERANCES_AHEAD = 4  # utterances of a text that are submitted at once if the caller does not wait for the first audio
MAX_ACTIVE_TEXTS = 24  # texts generated at once: sixteen, and eight that wait to be decoded together


class SpeechStream:
    """The stream of one text: iterating yields its chunks of audio; closing it cancels the generation.

    Every utterance is generated in the voice of its speaker. If a speaker has none, the first utterance becomes a
    previous turn in the prompts of the speaker's others; otherwise each would have another voice.

    Args:
        request: the request; its first utterances are submitted when the first chunk is requested or `start` is called.
        engine, builder, queue: engine, request builder and decode queue of a checkpoint.
        num_ahead: number of utterances that are submitted at once, if they can be generated in parallel.
        is_offline, look_ahead: as in `DecodeQueue.open`.
    """

    def __init__(
        self,
        request: SpeechRequest,
        engine: Engine,
        builder: RequestBuilder,
        queue: DecodeQueue,
        *,
        num_ahead: int = 1,
        is_offline: bool = False,
        look_ahead: int | None = None,
    ) -> None:
        self._request, self._engine, self._builder, self._queue = request, engine, builder, queue
        self._is_offline, self._look_ahead = is_offline, look_ahead
        self._num_ahead = num_ahead if request.is_parallel else 1
        self._jobs: dict[int, DecodeJob] = {}
        self._is_stopped = False
        self._previous: dict[str, tuple[Turn, ...]] = {}  # the first turn of each speaker without a voice
        self._frames_left = request.max_frames
        self._trailing_seconds = self._silent_level = 0.0  # of the last finished utterance
        self._reserved = 0  # frames of the pause after it
        self._chunks = self._generate()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def start(self) -> Self:
        """Submits the first utterances, so that they are generated together with others.

        Raises:
            HiggsAudioError: as for `Engine.submit`.
        """
        try:
            self._submit(0)
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Ends the stream at the next step, from any thread; a thread that waits for a chunk then gets no more."""
        self._is_stopped = True
        for job in list(self._jobs.values()):
            job.handle.cancel()

    def close(self) -> None:
        """Cancels all utterances that are not finished."""
        self._chunks.close()
        self.stop()
        for job in list(self._jobs.values()):
            self._queue.close(job)

    def _generate(self) -> Generator[Chunk, None, None]:
        for number in range(len(self._request.utterances)):
            self._reserve_pause(number - 1)
            if self._frames_left == 0:
                yield self._empty_chunk("length")
                return
            self._submit(number)
            chunks: list[Chunk] = []
            for chunk in self._queue.chunks(self._jobs[number]):
                if number and not any(len(earlier.samples) for earlier in chunks) and len(chunk.samples):
                    yield from self._pause(number - 1, chunk)
                chunks.append(chunk)
                yield chunk
            if self._is_stopped:
                return
            del self._jobs[number]
            self._finish_utterance(number, chunks)

    def _reserve_pause(self, number: int) -> None:
        """Takes the frames that the pause after an utterance needs at most from those that are left."""
        seconds = self._request.pauses[number] - self._trailing_seconds if number >= 0 else 0.0
        self._reserved = num_silent_frames(seconds, self._queue.codec.config.frame_rate)
        if self._frames_left is not None:
            self._reserved = min(self._reserved, self._frames_left)
            self._frames_left -= self._reserved

    def _pause(self, number: int, following: Chunk) -> Iterator[Chunk]:
        """Yields the silence between an utterance and the first chunk of the next, if what they leave is too short."""
        codec = self._queue.codec
        rate, hop = codec.config.sample_rate, codec.config.hop_length
        lead = leading_silence(following.samples[: LEAD_FRAMES * hop], self._silent_level, rate)
        seconds = self._request.pauses[number] - self._trailing_seconds - lead
        frames = min(num_silent_frames(seconds, codec.config.frame_rate), self._reserved)
        if self._frames_left is not None:
            self._frames_left += self._reserved - frames
        if frames:
            yield Chunk(np.zeros(frames * hop, np.float32), self._queue.silent_frame.expand(-1, frames))

    def _finish_utterance(self, number: int, chunks: Sequence[Chunk]) -> None:
        """Records what follows from a finished utterance: its silence, the frames that are left, the voice."""
        samples = np.concatenate([chunk.samples for chunk in chunks])
        rate = self._queue.codec.config.sample_rate
        self._trailing_seconds, self._silent_level = trailing_silence(samples, rate), silent_level(samples, rate)
        codes = torch.cat([chunk.codes for chunk in chunks], dim=1).numpy()  # [K, F]
        if self._frames_left is not None:
            self._frames_left -= codes.shape[1]
        if self._request.voices[number] is None:
            turn = Turn(self._request.utterances[number], SPEAKER, codes)
            self._previous.setdefault(self._request.speakers[number], (turn,))

    def _submit(self, first: int) -> None:
        """Submits up to `num_ahead` utterances from `first` on; the error of a later one is raised in its turn."""
        last = min(first + self._num_ahead, len(self._request.utterances))
        for number in range(first, last):
            if number in self._jobs:
                continue
            try:
                previous = self._previous.get(self._request.speakers[number], ())
                request = self._builder.build(self._request, number, previous, self._frames_left)
                handle = self._engine.submit(replace(request, is_offline=self._is_offline))
                self._jobs[number] = self._queue.open(handle, self._is_offline, self._look_ahead)
            except HiggsAudioError:
                if number == first:
                    raise
                return
            if self._is_stopped:
                self._jobs[number].handle.cancel()

    def _empty_chunk(self, finish_reason: str) -> Chunk:
        codes = torch.zeros(self._queue.codec.config.num_codebooks, 0).long()
        return Chunk(np.zeros(0, np.float32), codes, finish_reason)


def stream_many(
    requests: Iterable[SpeechRequest], open_stream: Callable[[SpeechRequest], SpeechStream], sample_rate: int
) -> Generator[tuple[int, Speech | HiggsAudioError], None, None]:
    """Generates many texts, `MAX_ACTIVE_TEXTS` at once; yields the index and the speech or error of each when done.

    Closing the iterator cancels the generation.

    Args:
        requests: any number of requests; the next one is read when a text is done.
        open_stream: creates the stream of a request.
        sample_rate: sample rate of the audio.
    """
    pending, active = enumerate(requests), dict[int, tuple[SpeechStream, SpeechBuilder]]()
    try:
        while True:
            while len(active) < MAX_ACTIVE_TEXTS and (following := next(pending, None)) is not None:
                number, request = following
                try:
                    active[number] = open_stream(request).start(), SpeechBuilder(sample_rate)
                except HiggsAudioError as error:
                    yield number, error
            if not active:
                return
            for number, (stream, builder) in list(active.items()):
                result = _advance(stream, builder)
                if result is not None:
                    active.pop(number)[0].close()
                    yield number, result
    finally:
        for stream, _ in active.values():
            stream.close()


def _advance(stream: SpeechStream, builder: SpeechBuilder) -> Speech | HiggsAudioError | None:
    """Adds the next chunk; returns the speech if there is none, or the error that ended the stream."""
    try:
        chunk = next(stream, None)
    except HiggsAudioError as error:
        return error
    if chunk is None:
        return builder.speech()
    builder.add(chunk)
    return None


def stream_speech(stream: SpeechStream) -> Generator[Chunk, None, None]:
    """Yields the chunks of a stream, and closes it when the generator is closed."""
    with closing(stream):
        yield from stream
