"""Decode queue: decodes columns to chunks of audio, together for all utterances that have enough frames.

Decoding several utterances in one call of the audio tokenizer is faster than decoding each alone. There is no worker
thread: a caller that needs a chunk decodes it together with the chunks of other utterances that are ready.
"""

import threading
from collections import deque
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.codec import HiggsAudioTokenizer, StreamDecoder, push_many
from higgs_audio.delay import FrameAligner
from higgs_audio.engine import RequestHandle
from higgs_audio.errors import wrap_error
from higgs_audio.speech.result import Chunk
from higgs_audio.speech.silence import silent_frame

# Frames per chunk: few at first, so that audio starts early, then more, because each call has a cost ("dac" decodes the
# frames around a chunk again).
FIRST_CHUNK_FRAMES = 4
NEXT_CHUNK_FRAMES = 8
MAX_CHUNK_FRAMES = 64
OFFLINE_CHUNK_FRAMES = 256  # longer than most utterances
GROUP_SIZE = 8  # offline utterances decoded in one call: 39 ms each instead of 61 ms, on two cores


class DecodeJob:
    """An utterance that is being decoded; `DecodeQueue.open` creates it.

    Attributes:
        handle: handle of the engine request, which yields the columns.
        decoder: decoder with the state of the stream.
        is_offline: whether the caller does not wait for the first chunk.
        chunks: decoded chunks that have not been returned yet.
        error: the error that ended the job, or None; raised after the chunks have been returned.
        is_last: whether the chunk that is ready to be decoded is the last one.
        is_finished: whether the last chunk has been decoded.
    """

    def __init__(
        self, handle: RequestHandle, codec: HiggsAudioTokenizer, is_offline: bool, look_ahead: int | None
    ) -> None:
        self.handle, self.decoder, self.is_offline = handle, StreamDecoder(codec, look_ahead), is_offline
        self.chunks: deque[Chunk] = deque()
        self.error: Exception | None = None
        self.is_last = self.is_finished = False
        self._num_codebooks, bos = codec.config.num_codebooks, codec.config.codebook_size
        self._aligner = FrameAligner(self._num_codebooks, bos, bos + 1)
        self._frames: list[list[int]] = []
        ahead = codec.decoder_context[1] if look_ahead is None else look_ahead
        first = OFFLINE_CHUNK_FRAMES if is_offline else FIRST_CHUNK_FRAMES
        self._size = ahead + first  # frames of the next chunk; `_next_size` is for the one after it
        self._next_size = OFFLINE_CHUNK_FRAMES if is_offline else NEXT_CHUNK_FRAMES
        self._max_size = max(self._next_size, MAX_CHUNK_FRAMES)

    def collect(self) -> bool:
        """Reads the available columns. Returns whether a chunk is ready, and sets `is_last` if it is the last one."""
        while not self.is_finished and len(self._frames) < self._size:
            is_done = self.handle.is_done  # read first: the last column arrives before the handle is done
            column = self.handle.poll()
            if column is None:
                self.is_last = is_done
                return is_done
            frame = self._aligner.push(column)
            if frame is not None:
                self._frames.append(frame)
        return not self.is_finished

    @property
    def codes(self) -> Tensor:
        """Codes [K, F] of the chunk that is ready, on the CPU."""
        return torch.tensor(self._frames, dtype=torch.long).reshape(-1, self._num_codebooks).T

    def add(self, samples: NDArray[np.float32], codes: Tensor) -> None:
        """Adds the decoded samples [S] and the codes [K, F] of the chunk that was ready."""
        self.chunks.append(Chunk(samples, codes, self.handle.finish_reason if self.is_last else None))
        self.is_finished = self.is_last
        self._frames, self._size = [], self._next_size
        self._next_size = min(2 * self._next_size, self._max_size)

    def fail(self, error: Exception) -> None:
        """Ends the job with an error."""
        self.error, self.is_finished = error, True


class DecodeQueue:
    """Decodes the utterances of one audio tokenizer. Thread-safe.

    Args:
        codec: the audio tokenizer.
    """

    def __init__(self, codec: HiggsAudioTokenizer) -> None:
        self.codec = codec
        self._jobs: list[DecodeJob] = []
        # Reentrant: the garbage collector closes an abandoned stream in any thread, even one that holds this lock.
        self._jobs_lock, self._decode_lock = threading.RLock(), threading.Lock()

    def __len__(self) -> int:
        """The number of open jobs that may be decoded together with others."""
        return len(self._jobs)

    @cached_property
    def silent_frame(self) -> Tensor:
        """Codes `[K, 1]` of a silent frame, on the CPU."""
        return silent_frame(self.codec)

    def open(self, handle: RequestHandle, is_offline: bool = False, look_ahead: int | None = None) -> DecodeJob:
        """Creates the job of an utterance; `chunks` then yields its chunks.

        Args:
            handle: handle of the engine request.
            is_offline: whether the caller does not wait for the first chunk. Chunks then have the maximum length, and
                may be decoded together with others from now on. Otherwise they start small and double.
            look_ahead: as in `StreamDecoder`.
        """
        job = DecodeJob(handle, self.codec, is_offline, look_ahead)
        if is_offline:
            self._add(job)
        return job

    def close(self, job: DecodeJob) -> None:
        """Removes a job whose chunks are no longer needed; its engine request continues."""
        with self._jobs_lock:
            if job in self._jobs:
                self._jobs.remove(job)

    def chunks(self, job: DecodeJob) -> Iterator[Chunk]:
        """Yields all chunks of a job and closes it.

        Raises:
            HiggsAudioError: the engine request or the audio tokenizer failed.
        """
        self._add(job)
        try:
            while not job.is_finished or job.chunks:
                self._advance(job)
                while job.chunks:
                    yield job.chunks.popleft()
            if job.error is not None:
                raise job.error
        finally:
            self.close(job)

    def _add(self, job: DecodeJob) -> None:
        with self._jobs_lock:
            if job not in self._jobs:
                self._jobs.append(job)

    def _advance(self, job: DecodeJob) -> None:
        """Runs one step of the engine, or one call of the audio tokenizer if the job has a chunk to decode.

        While another thread decodes, this thread runs engine steps as long as the job's request is not done.
        """
        waiting = job
        if self._decode_lock.acquire(blocking=job.handle.is_done):
            try:
                if job.chunks or job.is_finished:
                    return
                if job.collect():
                    ready, not_ready = self._group(job)
                    if not job.is_offline or not not_ready or len(ready) == GROUP_SIZE:
                        self._decode(ready)
                        return
                    waiting = not_ready[0]  # an offline chunk can wait until more of them are ready
            finally:
                self._decode_lock.release()
        waiting.handle.wait()

    def _group(self, job: DecodeJob) -> tuple[list[DecodeJob], list[DecodeJob]]:
        """Returns the jobs to decode together, at most `GROUP_SIZE`, and the offline jobs that are not ready.

        The first chunk of a stream does not wait for the long chunks of offline jobs.
        """
        with self._jobs_lock:
            others = [other for other in self._jobs if other is not job and (job.is_offline or not other.is_offline)]
        ready = [other for other in others if other.collect()]
        not_ready = [other for other in others if other.is_offline and not other.is_finished and other not in ready]
        return [job, *sorted(ready, key=lambda other: other.is_offline)][:GROUP_SIZE], not_ready

    def _decode(self, jobs: list[DecodeJob]) -> None:
        """Decodes a chunk of each job. If that fails, each job is decoded alone, so that only the failing one ends."""
        for job in jobs:
            if job.is_last and job.handle.error is not None:
                job.fail(job.handle.error)
        jobs = [job for job in jobs if not job.is_finished]
        if not jobs:
            return
        codes, states = [job.codes for job in jobs], [job.decoder.state for job in jobs]
        try:
            samples = self._push(jobs, codes)
        except BaseException as error:
            for job, state in zip(jobs, states, strict=True):
                job.decoder.state = state
            if not isinstance(error, Exception):
                raise
            if len(jobs) == 1:
                jobs[0].fail(wrap_error(error))
            else:
                for job in jobs:
                    self._decode([job])
            return
        for job, job_samples, job_codes in zip(jobs, samples, codes, strict=True):
            job.add(job_samples, job_codes)

    def _push(self, jobs: list[DecodeJob], codes: list[Tensor]) -> list[NDArray[np.float32]]:
        """Returns the samples of each job, on the CPU; clips them, because the decoder may slightly exceed [-1, 1]."""
        decoders, on_device = [job.decoder for job in jobs], [job_codes.to(self.codec.device) for job_codes in codes]
        samples = push_many(decoders, on_device, [job.is_last for job in jobs])
        return [job_samples.float().clamp(-1, 1).cpu().numpy() for job_samples in samples]
