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
from higgs_audio.generation.sampling import draw, uniforms

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
    most = request.max_frames + num_codebooks + 1  # columns of the segment
    window = min(options.ras_win_len or 0, most)
    whole = {
        "made": 1,
        "end": 0,
        "step": 1,
        "seed": request.seed,
        "min_frames": request.min_frames,
        "max_frames": request.max_frames,
        "top_k": min(num_rows, options.top_k or num_rows),
        "window": window,
        "repeats": options.ras_win_max_num_repeat if window else NEVER,
        "end_books": options.eos_codebooks or num_codebooks,
    }
    real = {
        "temperature": options.temperature if options.do_sample else 1.0,
        "top_p": options.top_p or 1.0,
        "scale": options.text_guidance_scale,
    }
    return Lanes(
        column=torch.full((1, num_codebooks), config.audio_stream_bos_id, device=device),
        recent=torch.full((1, num_codebooks, max(1, window)), -1, device=device),
        is_random=torch.tensor([options.do_sample], device=device),
        **{name: torch.tensor([value], dtype=torch.long, device=device) for name, value in whole.items()},
        **{name: torch.tensor([value], dtype=torch.float32, device=device) for name, value in real.items()},
    )


@dataclass(frozen=True)
class Habits:
    """What the host knows of lanes as long as nobody joins or leaves, so that a step need not ask for it.

    Attributes:
        noise: `[B, n, 2 K]` random numbers of the next n steps, the draws' and then the redraws'.
        is_random, is_watched: whether any lane draws, looks for repetitions.
        top_k: the greatest.
    """

    noise: Tensor
    is_random: bool
    is_watched: bool
    top_k: int

    @classmethod
    def of(cls, lanes: Lanes, num_steps: int) -> "Habits":
        """Those of the lanes, for so many steps."""
        count, num_codebooks = lanes.column.shape
        steps = lanes.step[:, None] + torch.arange(num_steps, device=lanes.step.device)  # [B, n]
        seeds = lanes.seed[:, None].expand(-1, num_steps)
        noise = uniforms(seeds.flatten(), steps.flatten(), 2 * num_codebooks).view(count, num_steps, -1)
        is_random, is_watched = bool(lanes.is_random.any()), bool((lanes.window > 0).any())
        return cls(noise, is_random, is_watched, int(lanes.top_k.max()))


def next_columns(lanes: Lanes, logits: Tensor, config: HiggsAudioConfig, habits: Habits, number: int) -> Lanes:
    """The lanes one step later; finished ones too, whose columns then mean nothing.

    Args:
        lanes: before the step.
        logits: `[B, K, V + 2]` that follow their columns, guidance done; written to.
        config: of the model.
        habits: of these lanes.
        number: of the step among those of `habits`.
    """
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    logits = _allowed(lanes, logits.float(), bos, eos)
    drawing, again = habits.noise[:, number].chunk(2, dim=1)  # [B, K] each
    ids = choose(logits, lanes, drawing, habits.top_k) if habits.is_random else logits.argmax(-1)  # [B, K]
    if habits.is_watched:
        ids = _without_repetition(ids, logits, lanes, again)
    full = (lanes.end == 0) & (lanes.made == lanes.max_frames + 1)
    ids[:, 0] = torch.where(full, eos, ids[:, 0])
    column, end = _marked(ids, lanes, bos, eos)
    recent = lanes.recent
    if habits.is_watched:
        recent = torch.cat([recent[:, :, 1:], column.masked_fill(column >= bos, -1)[..., None]], dim=2)
    return replace(lanes, column=column, made=lanes.made + 1, end=end, step=lanes.step + 1, recent=recent)


def is_finished(lanes: Lanes) -> Tensor:
    """Whether the last column has been made, `[B]` bool."""
    return (lanes.end > 0) & (lanes.made >= lanes.end)


def choose(logits: Tensor, lanes: Lanes, noise: Tensor, most: int) -> Tensor:
    """`sampling.sample` with options that differ by lane: `[B, K, V]`, noise `[B, K]` -> ids `[B, K]`.

    Only the `most` likely ids are looked at, so many as the greatest top_k, and those that are as likely as the last:
    what a lane draws must not depend on how many its neighbours look at. Equally likely ids count from id 0 on.
    """
    values, ids = _likeliest(logits / lanes.temperature[:, None, None], most)  # [B, K, k], by id
    ordered, order = values.sort(dim=-1, descending=True, stable=True)
    last = (lanes.top_k.clamp(max=values.shape[-1]) - 1)[:, None, None].expand(-1, values.shape[1], -1)
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, last), float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    more_likely = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill(more_likely >= lanes.top_p[:, None, None], float("-inf"))
    kept = torch.empty_like(values).scatter_(-1, order, ordered)  # draws add probabilities up from id 0 on
    drawn = ids.gather(-1, draw(kept, noise)[..., None])[..., 0]
    return torch.where(lanes.is_random[:, None], drawn, logits.argmax(-1))


def _likeliest(logits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Logits and ids `[B, K, k]`, by id, of the `most` likely ones and of all that are as likely as the last of them.

    On a GPU all: counting those would make the host wait.
    """
    num_ids = logits.shape[-1]
    if most >= num_ids or logits.device.type != "cpu":
        return logits, torch.arange(num_ids, device=logits.device).expand_as(logits)
    found = logits.topk(most, dim=-1)
    equal = int((logits >= found.values[..., -1:]).sum(-1).max())
    if most < equal:
        found = logits.topk(equal, dim=-1)
    ids = found.indices.sort(dim=-1).values
    return logits.gather(-1, ids), ids


def _allowed(lanes: Lanes, logits: Tensor, bos: int, eos: int) -> Tensor:
    """As `generate.mask_audio`: no stream bos, and no eos where it must not be."""
    books = torch.arange(logits.shape[1], device=logits.device)  # [K]
    early = lanes.made[:, None] - 1 - books < lanes.min_frames[:, None]  # [B, K]
    never = early | (books >= lanes.end_books[:, None])
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
    """As `delay.DelayState.push`: the column with its forced markers, `[B, K]`, and the ends, `[B]`."""
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
