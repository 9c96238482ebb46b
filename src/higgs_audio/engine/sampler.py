"""From logits to the next column of every lane: with tensors, or on a CPU in one call of C (`native/choice.c`), as
tensors so small are mostly the overhead of their operations.
"""

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.engine.decode_state import Habits, Lanes, is_finished, next_columns
from higgs_audio.generation.guidance import apply_guidance
from higgs_audio.native import native_library, num_threads
from higgs_audio.native.structs import SamplerStruct

NUM_STEPS = 32  # whose random numbers are made at once


class Choice:
    """What is chosen for the same lanes, as long as nobody joins or leaves, for up to `NUM_STEPS` steps.

    Args:
        lanes: before the first step.
        read, unread: `[B]` the rows of the logits that a lane has, the same one where there is no second.
        config: of the model.

    Attributes:
        num_steps: that have been taken.
    """

    def __init__(self, lanes: Lanes, read: Tensor, unread: Tensor, config: HiggsAudioConfig) -> None:
        self._read, self._unread, self._config = read, unread, config
        self._is_guided = not torch.equal(read, unread)
        self._habits = Habits.of(lanes, NUM_STEPS)
        self.num_steps = 0

    def __call__(self, lanes: Lanes, logits: Tensor) -> tuple[Lanes, Tensor]:
        """The lanes one step later, from logits `[R, K, V + 2]`.

        Also `[B, K + 3]`: their columns, where their segments end, whether that column is the last one, and whether the
        logits were numbers.
        """
        read = logits[self._read]  # [B, K, V + 2]
        finite = _is_finite(read)  # [B]
        if self._is_guided:
            unread, scale = logits[self._unread], lanes.scale[:, None, None]
            finite &= _is_finite(unread)
            others = apply_guidance(torch.cat([read, unread]), scale, self._config.audio_stream_eos_id)
            read = torch.where(scale == 1, read.float(), others)
        lanes = next_columns(lanes, read, self._config, self._habits, self.num_steps)
        self.num_steps += 1
        state = torch.stack([lanes.end, is_finished(lanes), finite], dim=1)  # [B, 3]
        return lanes, torch.cat([lanes.column, state], dim=1)


class NativeChoice(Choice):
    """The same in C, for lanes on a CPU.

    Args:
        lanes, read, unread, config: of `Choice`.
        library: of `native_library`.
    """

    def __init__(
        self, lanes: Lanes, read: Tensor, unread: Tensor, config: HiggsAudioConfig, library: ctypes.CDLL
    ) -> None:
        super().__init__(lanes, read, unread, config)
        self._library, self._lanes = library, lanes  # kept: C points to what stays the same of them
        count, books = lanes.column.shape
        whole = (count, books, config.codebook_rows, lanes.recent.shape[2])
        markers = (config.audio_stream_bos_id, config.audio_stream_eos_id)
        bounds = (lanes.made, lanes.end, lanes.min_frames, lanes.max_frames, lanes.top_k, lanes.window, lanes.repeats)
        options = (lanes.end_books, lanes.is_random, lanes.temperature, lanes.top_p, lanes.scale, lanes.recent)
        tensors = (read, unread, *bounds, *options, self._habits.noise)
        assert all(tensor.is_contiguous() for tensor in tensors)
        places = (tensor.data_ptr() for tensor in tensors)
        self._struct = SamplerStruct(*whole, *markers, *places, self._habits.noise.stride(0))
        self._threads = num_threads()
        num_bytes = library.choice_workspace(count, books, config.codebook_rows, self._threads)
        self._work = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")

    def __call__(self, lanes: Lanes, logits: Tensor) -> tuple[Lanes, Tensor]:
        count, books = lanes.column.shape
        logits, recent = logits.float().contiguous(), torch.empty_like(lanes.recent)
        noise = self._habits.noise[:, self.num_steps]
        columns = torch.empty(count, books + 3, dtype=torch.long, device="cpu")
        assert logits.shape[1:] == (books, self._config.codebook_rows)
        self._struct.made, self._struct.end = lanes.made.data_ptr(), lanes.end.data_ptr()
        self._struct.recent, self._struct.noise = lanes.recent.data_ptr(), noise.data_ptr()
        self._library.next_columns(
            ctypes.byref(self._struct),
            *(tensor.data_ptr() for tensor in (logits, columns, recent, self._work)),
            self._threads,
        )
        self.num_steps += 1
        column, end = columns[:, :books], columns[:, books].clone()
        return replace(lanes, column=column, made=lanes.made + 1, end=end, step=lanes.step + 1, recent=recent), columns


def choice_for(lanes: Lanes, read: Tensor, unread: Tensor, config: HiggsAudioConfig) -> Choice:
    """In C where that can be."""
    library = native_library() if lanes.made.device.type == "cpu" else None
    if library is None:
        return Choice(lanes, read, unread, config)
    return NativeChoice(lanes, read, unread, config, library)


def _is_finite(logits: Tensor) -> Tensor:
    """Whether one can choose from `[B, K, V]`, `[B]`; -inf is allowed."""
    return (logits < float("inf")).flatten(1).all(1)
