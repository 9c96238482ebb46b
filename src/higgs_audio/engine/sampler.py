"""Samples the next column of every sequence from logits: in torch, or on a CPU in one C call (`native/sampler.c`),
because per-operation overhead dominates for tensors this small.
"""

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.engine.decode_state import DecodeState, SamplingMetadata, is_finished, next_columns
from higgs_audio.generation.guidance import apply_guidance
from higgs_audio.native import native_library, num_threads
from higgs_audio.native.structs import SamplerStruct

NUM_STEPS = 32  # steps whose random numbers are computed at once


class Sampler:
    """Samples for a batch of sequences until one joins or leaves, for up to `NUM_STEPS` steps, in torch.

    Args:
        state: the state before the first step.
        conditional_rows, negative_rows: `[B]`, for each sequence the rows of its logits with and without the text;
            equal without guidance.
        config: config of the model.

    Attributes:
        conditional_rows, negative_rows: the arguments.
        metadata: metadata of the batch.
        num_steps: number of steps so far.
    """

    def __init__(
        self, state: DecodeState, conditional_rows: Tensor, negative_rows: Tensor, config: HiggsAudioConfig
    ) -> None:
        self.conditional_rows, self.negative_rows, self._config = conditional_rows, negative_rows, config
        self._is_guided = not torch.equal(conditional_rows, negative_rows)
        self.metadata = SamplingMetadata.of(state, NUM_STEPS)
        self.num_steps = 0

    def __call__(self, state: DecodeState, logits: Tensor) -> tuple[DecodeState, Tensor]:
        """Samples one column of each sequence from logits `[R, K, V + 2]`.

        Returns:
            The state after the step, and `[B, K + 3]`: the column, the number of columns of the whole segment (0 while
            it is open), whether this column is the last one, and whether the logits were finite or -inf.
        """
        conditional = logits[self.conditional_rows]  # [B, K, V + 2]
        finite = _is_finite(conditional)  # [B]
        if self._is_guided:
            negative, scale = logits[self.negative_rows], state.text_guidance_scale[:, None, None]
            finite &= _is_finite(negative)
            guided = apply_guidance(torch.cat([conditional, negative]), scale, self._config.audio_stream_eos_id)
            conditional = torch.where(scale == 1, conditional.float(), guided)
        state = next_columns(state, conditional, self._config, self.metadata, self.num_steps)
        self.num_steps += 1
        status = torch.stack([state.end, is_finished(state), finite], dim=1)  # [B, 3]
        return state, torch.cat([state.column, status], dim=1)


class NativeSampler(Sampler):
    """`Sampler` in C, for states on a CPU.

    Args:
        state, conditional_rows, negative_rows, config: as for `Sampler`.
        library: from `native_library`.
    """

    def __init__(
        self,
        state: DecodeState,
        conditional_rows: Tensor,
        negative_rows: Tensor,
        config: HiggsAudioConfig,
        library: ctypes.CDLL,
    ) -> None:
        super().__init__(state, conditional_rows, negative_rows, config)
        self._library, self._state = library, state  # keeps the tensors alive to which C has pointers
        count, num_codebooks = state.column.shape
        self._struct = self._make_struct(state)
        self._threads = num_threads()
        num_bytes = library.higgs_sampler_workspace(count, num_codebooks, config.codebook_rows)
        self._work = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")

    def _make_struct(self, state: DecodeState) -> SamplerStruct:
        """Returns the arguments of the C call; `__call__` sets those that change with every step."""
        config, noise = self._config, self.metadata.noise
        own = {"conditional_rows": self.conditional_rows, "negative_rows": self.negative_rows, "noise": noise}
        names = [field[0] for field in SamplerStruct._fields_ if field[1] is ctypes.c_void_p]
        tensors = {name: own[name] if name in own else getattr(state, name) for name in names}
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        return SamplerStruct(
            num_sequences=state.column.shape[0],
            num_codebooks=state.column.shape[1],
            num_ids=config.codebook_rows,
            window_width=state.recent.shape[2],
            bos=config.audio_stream_bos_id,
            eos=config.audio_stream_eos_id,
            noise_stride=noise.stride(0),
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )

    def __call__(self, state: DecodeState, logits: Tensor) -> tuple[DecodeState, Tensor]:
        count, num_codebooks = state.column.shape
        logits, recent = logits.float().contiguous(), torch.empty_like(state.recent)
        noise = self.metadata.noise[:, self.num_steps]
        columns = torch.empty(count, num_codebooks + 3, dtype=torch.long, device="cpu")
        assert logits.shape[1:] == (num_codebooks, self._config.codebook_rows)
        self._struct.num_columns, self._struct.end = state.num_columns.data_ptr(), state.end.data_ptr()
        self._struct.recent, self._struct.noise = state.recent.data_ptr(), noise.data_ptr()
        self._library.higgs_sampler_next_columns(
            ctypes.byref(self._struct),
            *(tensor.data_ptr() for tensor in (logits, columns, recent, self._work)),
            self._threads,
        )
        self.num_steps += 1
        changed = {
            "column": columns[:, :num_codebooks],
            "num_columns": state.num_columns + 1,
            "end": columns[:, num_codebooks].clone(),
            "step": state.step + 1,
            "recent": recent,
        }
        return replace(state, **changed), columns


def make_sampler(
    state: DecodeState, conditional_rows: Tensor, negative_rows: Tensor, config: HiggsAudioConfig
) -> Sampler:
    """Returns a `NativeSampler` on a CPU with a compiled library, else a `Sampler`."""
    library = native_library() if state.num_columns.device.type == "cpu" else None
    if library is None:
        return Sampler(state, conditional_rows, negative_rows, config)
    return NativeSampler(state, conditional_rows, negative_rows, config, library)


def _is_finite(logits: Tensor) -> Tensor:
    """Returns whether logits `[B, K, V]` are finite or -inf, `[B]` bool."""
    return (logits < float("inf")).flatten(1).all(1)
