"""Columns to chunks of sound, of all utterances that are ready at once: few large calls of the audio tokenizer.

Whoever wants a chunk makes it, and with it those of the others that have enough frames by then.
"""

import threading
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.codec import HiggsAudioTokenizer, StreamDecoder, push_many
from higgs_audio.delay import FrameAligner
from higgs_audio.engine import RequestHandle
from higgs_audio.errors import typed
from higgs_audio.speech.result import Chunk

# Frames sounded together: few at first, so that sound comes soon, then more, as a call costs (a `dac` body decodes
# the frames around them again).
FIRST_CHUNK_FRAMES = 4
NEXT_CHUNK_FRAMES = 8
MAX_CHUNK_FRAMES = 64
PATIENT_CHUNK_FRAMES = 256  # longer than most utterances
GROUP = 8  # utterances that nobody waits for, sounded at once: 39 ms each in place of 61, on two cores


class DecodeJob:
    """An utterance on its way to a listener; `DecodeQueue.open` makes it.

    Attributes:
        answer: its columns.
        soon: whether somebody waits for its first chunk.
        chunks: made and not yet taken.
        error: what ended it, once its chunks are taken.
        is_last: whether the chunk that is ready is the last one.
        is_over: whether the last chunk has been made.
    """

    def __init__(self, answer: RequestHandle, codec: HiggsAudioTokenizer, soon: bool, look_ahead: int | None) -> None:
        self.answer, self.decoder, self.soon = answer, StreamDecoder(codec, look_ahead), soon
        self.chunks: deque[Chunk] = deque()
        self.error: Exception | None = None
        self.is_last = self.is_over = False
        self._num_codebooks, marker = codec.config.num_codebooks, codec.config.codebook_size
        self._aligner = FrameAligner(self._num_codebooks, marker, marker + 1)
        self._frames: list[list[int]] = []
        ahead = codec.decoder_context[1] if look_ahead is None else look_ahead
        first, self._later = (FIRST_CHUNK_FRAMES, NEXT_CHUNK_FRAMES) if soon else (PATIENT_CHUNK_FRAMES,) * 2
        self._size, self._most = ahead + first, max(self._later, MAX_CHUNK_FRAMES)

    def collect(self) -> bool:
        """Takes the columns that are there; whether they are enough for a chunk, and `is_last` whether for the last."""
        while not self.is_over and len(self._frames) < self._size:
            is_done = self.answer.is_done  # first: the last column comes before the answer is done
            column = self.answer.poll()
            if column is None:
                self.is_last = is_done
                return is_done
            frame = self._aligner.push(column)
            if frame is not None:
                self._frames.append(frame)
        return not self.is_over

    @property
    def codes(self) -> Tensor:
        """Of the chunk that is ready, `[K, F]` on the CPU."""
        return torch.tensor(self._frames, dtype=torch.long).reshape(-1, self._num_codebooks).T

    def add(self, samples: NDArray[np.float32], codes: Tensor) -> None:
        """The chunk that was ready."""
        self.chunks.append(Chunk(samples, codes, self.answer.finish_reason if self.is_last else None))
        self.is_over = self.is_last
        self._frames, self._size, self._later = [], self._later, min(2 * self._later, self._most)

    def fail(self, error: Exception) -> None:
        """It has no more chunks."""
        self.error, self.is_over = error, True


class DecodeQueue:
    """Makes sound for one audio tokenizer; from any thread.

    Args:
        codec: whose codes they are.
    """

    def __init__(self, codec: HiggsAudioTokenizer) -> None:
        self.codec = codec
        self._open: list[DecodeJob] = []
        # A stream that nobody wants is closed wherever the garbage collector is called: also by a thread that sounds.
        self._books, self._sounds = threading.RLock(), threading.Lock()

    def open(self, answer: RequestHandle, soon: bool = True, look_ahead: int | None = None) -> DecodeJob:
        """An utterance whose chunks will be asked for.

        Args:
            answer: its columns.
            soon: whether somebody waits for the first sound: chunks begin small and double. Otherwise all are of the
                greatest length, and may be made beside others from now on.
            look_ahead: that of `StreamDecoder`.
        """
        sounding = DecodeJob(answer, self.codec, soon, look_ahead)
        if not soon:
            self._join(sounding)
        return sounding

    def close(self, sounding: DecodeJob) -> None:
        """Nobody wants its chunks; what it answers goes on."""
        with self._books:
            if sounding in self._open:
                self._open.remove(sounding)

    def chunks(self, sounding: DecodeJob) -> Iterator[Chunk]:
        """All of them, and then it is closed. Raises what the engine or the audio tokenizer failed with."""
        self._join(sounding)
        try:
            while not sounding.is_over or sounding.chunks:
                self._work_for(sounding)
                while sounding.chunks:
                    yield sounding.chunks.popleft()
            if sounding.error is not None:
                raise sounding.error
        finally:
            self.close(sounding)

    def _join(self, sounding: DecodeJob) -> None:
        with self._books:
            if sounding not in self._open:
                self._open.append(sounding)

    def _work_for(self, sounding: DecodeJob) -> None:
        """A step, or sound. Where another thread is at sound, steps are taken, as long as there are some to take."""
        waiting = sounding
        if self._sounds.acquire(blocking=sounding.answer.is_done):
            try:
                if sounding.chunks or sounding.is_over:
                    return
                if sounding.collect():
                    ready, others = self._beside(sounding)
                    if sounding.soon or not others or len(ready) == GROUP:
                        self._sound(ready)
                        return
                    waiting = others[0]  # there is time until more are ready
            finally:
                self._sounds.release()
        waiting.answer.wait()

    def _beside(self, sounding: DecodeJob) -> tuple[list[DecodeJob], list[DecodeJob]]:
        """It and others that are ready, `GROUP` at most; and those nobody waits for who are not.

        Whoever waits for a first sound does not wait for the long chunks of others.
        """
        with self._books:
            others = [one for one in self._open if one is not sounding and (one.soon or not sounding.soon)]
        ready = [one for one in others if one.collect()]
        left = [one for one in others if not one.soon and not one.is_over and one not in ready]
        return [sounding, *sorted(ready, key=lambda one: not one.soon)][:GROUP], left

    def _sound(self, ready: list[DecodeJob]) -> None:
        """A chunk of each. What fails for all is tried for each alone, and then fails for one alone."""
        for one in ready:
            if one.is_last and one.answer.error is not None:
                one.fail(one.answer.error)
        ready = [one for one in ready if not one.is_over]
        if not ready:
            return
        codes, states = [one.codes for one in ready], [one.decoder.state for one in ready]
        try:
            sounds = self._pushed(ready, codes)
        except BaseException as error:
            for one, state in zip(ready, states, strict=True):
                one.decoder.state = state
            if not isinstance(error, Exception):
                raise
            if len(ready) == 1:
                ready[0].fail(typed(error))
            else:
                for one in ready:
                    self._sound([one])
            return
        for one, samples, part in zip(ready, sounds, codes, strict=True):
            one.add(samples, part)

    def _pushed(self, ready: list[DecodeJob], codes: list[Tensor]) -> list[NDArray[np.float32]]:
        """The samples of each, on the CPU."""
        decoders, parts = [one.decoder for one in ready], [part.to(self.codec.device) for part in codes]
        sounds = push_many(decoders, parts, [one.is_last for one in ready])
        return [sound.float().clamp(-1, 1).cpu().numpy() for sound in sounds]  # it may go a little over 1
