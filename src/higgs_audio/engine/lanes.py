"""Where every running request stands, as tensors: one lane a request, all lanes advanced together.

`next_columns` is `generate.next_step` and `generate.advance` for requests that are inside a segment, without a loop
over them: filters, draws, repetition-aware redraws, and the markers that the delay pattern demands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.engine.request import Request
from higgs_audio.sampling import draw, uniforms

NEVER = 2**62  # of a count that must not be reached


@dataclass(frozen=True)
class Lanes:
    """B requests.

    Attributes:
        column: `[B, K]` the last one made, which the next step reads.
        made: `[B]` columns of the segment so far; its bos column is the first.
        end: `[B]` columns of the whole segment, 0 while that is open.
        step: `[B]` steps since the prompt, which number the draws.
        recent: `[B, K, W]` the last columns, -1 where a cell is a marker or there is none.
        seed, min_frames, max_frames: `[B]`, of the requests.
        is_random: `[B]` bool; temperature, top_p, scale: `[B]`; top_k, window, repeats, end_books: `[B]`.
    """

    column: Tensor
    made: Tensor
    end: Tensor
    step: Tensor
    recent: Tensor
    seed: Tensor
    min_frames: Tensor
    max_frames: Tensor
    is_random: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    window: Tensor
    repeats: Tensor
    end_books: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.made)

    def select(self, lanes: Sequence[int]) -> "Lanes":
        """These lanes, in this order."""
        index = torch.tensor(lanes, dtype=torch.long, device=self.made.device)
        return Lanes(*(getattr(self, one.name).index_select(0, index) for one in fields(self)))

    def join(self, other: "Lanes") -> "Lanes":
        """These and then those; the longer memory of columns holds for both."""
        width = max(self.recent.shape[2], other.recent.shape[2])
        parts = [replace(lanes, recent=_widened(lanes.recent, width)) for lanes in (self, other)]
        return Lanes(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(self)))


def first_lane(request: Request, config: HiggsAudioConfig, device: torch.device) -> Lanes:
    """The lane of a request whose prompt has been read: its first column is that of bos."""
    options, num_codebooks = request.sampling, config.audio_num_codebooks
    num_rows = config.codebook_rows
    whole = {
        "made": 1,
        "end": 0,
        "step": 1,
        "seed": request.seed,
        "min_frames": request.min_frames,
        "max_frames": request.max_frames,
        "top_k": min(num_rows, options.top_k or num_rows),
        "window": options.ras_win_len or 0,
        "repeats": options.ras_win_max_num_repeat if options.ras_win_len else NEVER,
        "end_books": options.eos_codebooks or num_codebooks,
    }
    real = {
        "temperature": options.temperature if options.do_sample else 1.0,
        "top_p": options.top_p or 1.0,
        "scale": options.text_guidance_scale,
    }
    return Lanes(
        column=torch.full((1, num_codebooks), config.audio_stream_bos_id, device=device),
        recent=torch.full((1, num_codebooks, max(1, options.ras_win_len or 1)), -1, device=device),
        is_random=torch.tensor([options.do_sample], device=device),
        **{name: torch.tensor([value], dtype=torch.long, device=device) for name, value in whole.items()},
        **{name: torch.tensor([value], dtype=torch.float32, device=device) for name, value in real.items()},
    )


def next_columns(lanes: Lanes, logits: Tensor, config: HiggsAudioConfig) -> Lanes:
    """The lanes one step later; finished ones too, whose columns then mean nothing.

    Args:
        lanes: before the step.
        logits: `[B, K, V + 2]` that follow their columns, guidance done.
        config: of the model.
    """
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    num_codebooks = config.audio_num_codebooks
    logits = _allowed(lanes, logits.float(), bos, eos)
    drawing, again = uniforms(lanes.seed, lanes.step, 2 * num_codebooks).chunk(2, dim=1)  # [B, K] each
    ids = choose(logits, lanes, drawing)  # [B, K]
    ids = _without_repetition(ids, logits, lanes, again)
    full = (lanes.end == 0) & (lanes.made == lanes.max_frames + 1)
    ids[:, 0] = torch.where(full, eos, ids[:, 0])
    column, end = _marked(ids, lanes, bos, eos)
    recent = torch.cat([lanes.recent[:, :, 1:], column.masked_fill(column >= bos, -1)[..., None]], dim=2)
    return replace(lanes, column=column, made=lanes.made + 1, end=end, step=lanes.step + 1, recent=recent)


def is_finished(lanes: Lanes) -> Tensor:
    """Whether the last column has been made, `[B]` bool."""
    return (lanes.end > 0) & (lanes.made >= lanes.end)


def choose(logits: Tensor, lanes: Lanes, noise: Tensor) -> Tensor:
    """`sampling.sample` with options that differ by lane: `[B, K, V]`, noise `[B, K]` -> ids `[B, K]`.

    Only the most likely ids are looked at, so many as the greatest top_k asks for.
    """
    most = int(lanes.top_k.max())  # of small integers that the host knows; on a GPU kept beside the lanes
    values, ids = (logits / lanes.temperature[:, None, None]).topk(min(most, logits.shape[-1]), dim=-1)  # [B, K, k]
    ranks = torch.arange(values.shape[-1], device=values.device)
    values = values.masked_fill(ranks >= lanes.top_k[:, None, None], float("-inf"))
    probabilities = values.softmax(dim=-1)
    more_likely = probabilities.cumsum(dim=-1) - probabilities
    values = values.masked_fill(more_likely >= lanes.top_p[:, None, None], float("-inf"))
    ordered, places = ids.sort(dim=-1)  # draws add probabilities up from id 0 on
    drawn = ordered.gather(-1, draw(values.gather(-1, places), noise)[..., None])[..., 0]
    return torch.where(lanes.is_random[:, None], drawn, ids[..., 0])


def _allowed(lanes: Lanes, logits: Tensor, bos: int, eos: int) -> Tensor:
    """As `generate.mask_audio`: no stream bos, and no eos where it must not be."""
    books = torch.arange(logits.shape[1], device=logits.device)  # [K]
    early = lanes.made[:, None] - 1 - books < lanes.min_frames[:, None]  # [B, K]
    never = early | (books >= lanes.end_books[:, None])
    logits = logits.clone()
    logits[..., bos] = float("-inf")
    logits[..., eos] = logits[..., eos].masked_fill(never, float("-inf"))
    return logits


def _without_repetition(ids: Tensor, logits: Tensor, lanes: Lanes, noise: Tensor) -> Tensor:
    """As `sampling.repetition_aware`, each lane with its own window."""
    width = lanes.recent.shape[2]
    ages = torch.arange(width, 0, -1, device=ids.device)  # [W], 1 is the last column
    counted = (lanes.recent == ids[..., None]) & (ages <= lanes.window[:, None, None])
    again = counted.sum(-1) >= lanes.repeats[:, None]  # [B, K]
    if ids.device.type == "cpu" and not bool(again.any()):
        return ids  # rare enough that looking is cheaper than drawing
    return torch.where(again, draw(logits, noise), ids)


def _marked(ids: Tensor, lanes: Lanes, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    """As `delay.Ramp.push`: the column with its forced markers, `[B, K]`, and the ends, `[B]`."""
    num_codebooks = ids.shape[1]
    books, made = torch.arange(num_codebooks, device=ids.device), lanes.made[:, None]
    column = torch.where(books < made, ids, bos)
    ends = column == eos
    first = ends.int().argmax(dim=1)  # [B] the first codebook with an eos
    end = torch.where((lanes.end == 0) & ends.any(dim=1), lanes.made + num_codebooks - first, lanes.end)
    forced = (end[:, None] > 0) & (books < made + num_codebooks - end[:, None])
    return torch.where(forced, eos, column), end


def _widened(recent: Tensor, width: int) -> Tensor:
    """`[B, K, W]` with nothing remembered before it."""
    return torch.nn.functional.pad(recent, (width - recent.shape[2], 0), value=-1)
