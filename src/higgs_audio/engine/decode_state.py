"""The decode state of all running sequences as tensors, advanced together by one column per step.

`next_columns` is the batched form of a step of `generation/loop.py` for B sequences inside their segments: filters,
draws, repetition-aware redraws, and the bos and eos that the delay pattern forces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.engine.request import Request
from higgs_audio.generation.sampling import draw, uniforms

UNREACHABLE = 2**62  # a count that no window reaches


@dataclass(frozen=True)
class DecodeState:
    """The state of B sequences. Fields of `SamplingOptions` keep their names; None is replaced by a number.

    Attributes:
        column: `[B, K]` the last column, the input of the next step.
        num_columns: `[B]` columns of the segment so far, with the bos column.
        end: `[B]` columns of the whole segment, 0 while it is open.
        step: `[B]` steps since the prompt, an input of the random draws.
        recent: `[B, K, W]` the last columns, -1 for bos, eos and before the first column.
        seed, min_frames, max_frames: `[B]`, from the requests.
        do_sample: `[B]` bool.
        temperature, top_p, text_guidance_scale: `[B]` float32.
        top_k, ras_win_len, ras_win_max_num_repeat, eos_codebooks: `[B]` int64.
    """

    column: Tensor
    num_columns: Tensor
    end: Tensor
    step: Tensor
    recent: Tensor
    seed: Tensor
    min_frames: Tensor
    max_frames: Tensor
    do_sample: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    ras_win_len: Tensor
    ras_win_max_num_repeat: Tensor
    eos_codebooks: Tensor
    text_guidance_scale: Tensor

    def __len__(self) -> int:
        return len(self.num_columns)

    def select(self, indices: Sequence[int]) -> "DecodeState":
        """Returns the state of the sequences at `indices`, in this order."""
        index = torch.tensor(indices, dtype=torch.long, device=self.num_columns.device)
        return DecodeState(*(getattr(self, one.name).index_select(0, index) for one in fields(self)))

    def concat(self, other: "DecodeState") -> "DecodeState":
        """Concatenates two states; all sequences get the longer window of recent columns."""
        width = max(self.recent.shape[2], other.recent.shape[2])
        parts = [replace(state, recent=_pad_window(state.recent, width)) for state in (self, other)]
        return DecodeState(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(self)))


def initial_state(request: Request, config: HiggsAudioConfig, device: torch.device) -> DecodeState:
    """Returns the state of one request after its prefill; its first column is the bos column."""
    options, num_codebooks = request.sampling, config.audio_num_codebooks
    max_columns = request.max_frames + num_codebooks + 1
    window = min(options.ras_win_len or 0, max_columns)
    integers = {
        "num_columns": 1,
        "end": 0,
        "step": 1,
        "seed": request.seed,
        "min_frames": request.min_frames,
        "max_frames": request.max_frames,
        "top_k": min(config.codebook_rows, options.top_k or config.codebook_rows),
        "ras_win_len": window,
        "ras_win_max_num_repeat": options.ras_win_max_num_repeat if window else UNREACHABLE,
        "eos_codebooks": options.eos_codebooks or num_codebooks,
    }
    floats = {
        "temperature": options.temperature if options.do_sample else 1.0,
        "top_p": options.top_p or 1.0,
        "text_guidance_scale": options.text_guidance_scale,
    }
    return DecodeState(
        column=torch.full((1, num_codebooks), config.audio_stream_bos_id, device=device),
        recent=torch.full((1, num_codebooks, max(1, window)), -1, device=device),
        do_sample=torch.tensor([options.do_sample], device=device),
        **{name: torch.tensor([value], dtype=torch.long, device=device) for name, value in integers.items()},
        **{name: torch.tensor([value], dtype=torch.float32, device=device) for name, value in floats.items()},
    )


@dataclass(frozen=True)
class SamplingMetadata:
    """Facts about a batch that the host reads once, when a sequence joins or leaves, so that steps need no sync.

    Attributes:
        noise: `[B, n, 2 K]` random numbers for the next n steps: K for the draws, then K for the redraws.
        any_sampled: whether any sequence has do_sample.
        any_repetition_aware: whether any sequence uses repetition-aware sampling.
        max_top_k: the largest top_k.
    """

    noise: Tensor
    any_sampled: bool
    any_repetition_aware: bool
    max_top_k: int

    @classmethod
    def of(cls, state: DecodeState, num_steps: int) -> "SamplingMetadata":
        """Returns the metadata of a state for its next `num_steps` steps."""
        count, num_codebooks = state.column.shape
        steps = state.step[:, None] + torch.arange(num_steps, device=state.step.device)  # [B, n]
        seeds = state.seed[:, None].expand(-1, num_steps)
        noise = uniforms(seeds.flatten(), steps.flatten(), 2 * num_codebooks).view(count, num_steps, -1)
        any_sampled, any_repetition_aware = bool(state.do_sample.any()), bool((state.ras_win_len > 0).any())
        return cls(noise, any_sampled, any_repetition_aware, int(state.top_k.max()))


def next_columns(
    state: DecodeState, logits: Tensor, config: HiggsAudioConfig, metadata: SamplingMetadata, index: int
) -> DecodeState:
    """Returns the state after one step. The columns of finished sequences are meaningless.

    Args:
        state: the state before the step.
        logits: `[B, K, V + 2]`, after guidance; overwritten.
        config: config of the model.
        metadata: metadata of the batch.
        index: index of the step in `metadata`.
    """
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    logits = _mask_bos_and_eos(state, logits.float(), bos, eos)
    noise, redraw_noise = metadata.noise[:, index].chunk(2, dim=1)  # [B, K] each
    ids = sample_ids(logits, state, noise, metadata.max_top_k) if metadata.any_sampled else logits.argmax(-1)  # [B, K]
    if metadata.any_repetition_aware:
        ids = _redraw_repetitions(ids, logits, state, redraw_noise)
    is_full = (state.end == 0) & (state.num_columns == state.max_frames + 1)
    ids[:, 0] = torch.where(is_full, eos, ids[:, 0])
    column, end = _force_bos_and_eos(ids, state, bos, eos)
    recent = state.recent
    if metadata.any_repetition_aware:
        recent = torch.cat([recent[:, :, 1:], column.masked_fill(column >= bos, -1)[..., None]], dim=2)
    return replace(state, column=column, num_columns=state.num_columns + 1, end=end, step=state.step + 1, recent=recent)


def is_finished(state: DecodeState) -> Tensor:
    """Whether the last column has been sampled, `[B]` bool."""
    return (state.end > 0) & (state.num_columns >= state.end)


def sample_ids(logits: Tensor, state: DecodeState, noise: Tensor, max_top_k: int) -> Tensor:
    """Applies `sampling.sample` with the options of each sequence.

    Only the `max_top_k` most likely ids are sorted, and all ids that tie with the last of them: a draw must not depend
    on the top_k of other sequences. Ties are ordered by id.

    Args:
        logits: `[B, K, V]`.
        state: the options.
        noise: `[B, K]` random numbers.
        max_top_k: the largest top_k of all sequences.

    Returns:
        Ids `[B, K]`.
    """
    values, ids = _most_likely(logits / state.temperature[:, None, None], max_top_k)  # [B, K, k], by id
    ordered, order = values.sort(dim=-1, descending=True, stable=True)
    last = (state.top_k.clamp(max=values.shape[-1]) - 1)[:, None, None].expand(-1, values.shape[1], -1)
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, last), float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    probability_before = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill(probability_before >= state.top_p[:, None, None], float("-inf"))
    kept = torch.empty_like(values).scatter_(-1, order, ordered)  # draws add probabilities up in the order of the ids
    drawn = ids.gather(-1, draw(kept, noise)[..., None])[..., 0]
    return torch.where(state.do_sample[:, None], drawn, logits.argmax(-1))


def _most_likely(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the logits and ids `[B, K, k]`, by id, of the `count` most likely ids and of all ties with the last.

    On a GPU it returns all ids: to count the ties, the host would have to wait.
    """
    num_ids = logits.shape[-1]
    if count >= num_ids or logits.device.type != "cpu":
        return logits, torch.arange(num_ids, device=logits.device).expand_as(logits)
    found = logits.topk(count, dim=-1)
    with_ties = int((logits >= found.values[..., -1:]).sum(-1).max())
    if count < with_ties:
        found = logits.topk(with_ties, dim=-1)
    ids = found.indices.sort(dim=-1).values
    return logits.gather(-1, ids), ids


def _mask_bos_and_eos(state: DecodeState, logits: Tensor, bos: int, eos: int) -> Tensor:
    """Masks stream bos, and stream eos before min_frames and in codebooks that may not end the segment."""
    codebooks = torch.arange(logits.shape[1], device=logits.device)  # [K]
    is_early = state.num_columns[:, None] - 1 - codebooks < state.min_frames[:, None]  # [B, K]
    is_excluded = is_early | (codebooks >= state.eos_codebooks[:, None])
    logits[..., bos] = float("-inf")
    logits[..., eos] = logits[..., eos].masked_fill(is_excluded, float("-inf"))
    return logits


def _redraw_repetitions(ids: Tensor, logits: Tensor, state: DecodeState, noise: Tensor) -> Tensor:
    """Applies `sampling.repetition_aware` with the window of each sequence: redraws ids that occur too often in it."""
    width = state.recent.shape[2]
    ages = torch.arange(width, 0, -1, device=ids.device)  # [W], 1 is the last column
    counted = (state.recent == ids[..., None]) & (ages <= state.ras_win_len[:, None, None])
    is_repeated = counted.sum(-1) >= state.ras_win_max_num_repeat[:, None]  # [B, K]
    if ids.device.type == "cpu" and not bool(is_repeated.any()):
        return ids  # redraws are rare: on a CPU, this check costs less than the draw
    return torch.where(is_repeated, draw(logits, noise), ids)


def _force_bos_and_eos(ids: Tensor, state: DecodeState, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    """`delay.DelayState.push` for B sequences: returns columns `[B, K]` with forced bos and eos, and ends `[B]`."""
    num_codebooks = ids.shape[1]
    codebooks, num_columns = torch.arange(num_codebooks, device=ids.device), state.num_columns[:, None]
    column = torch.where(codebooks < num_columns, ids, bos)
    is_eos = column == eos
    first = is_eos.int().argmax(dim=1)  # [B] the first codebook with an eos
    is_ending = (state.end == 0) & is_eos.any(dim=1)
    end = torch.where(is_ending, state.num_columns + num_codebooks - first, state.end)
    is_forced = (end[:, None] > 0) & (codebooks < num_columns + num_codebooks - end[:, None])
    return torch.where(is_forced, eos, column), end


def _pad_window(recent: Tensor, width: int) -> Tensor:
    """Pads `recent [B, K, W]` with -1 on the left to a window of `width` columns."""
    return torch.nn.functional.pad(recent, (width - recent.shape[2], 0), value=-1)
