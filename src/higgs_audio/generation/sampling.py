"""From logits to ids: temperature, top-k, top-p, one draw, and repetition-aware sampling. Pure functions on tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from higgs_audio.errors import NumericsError, check_count, check_value, is_number

MOST = 2**31 - 1  # of a count; torch's own numbers end at 2**63


@dataclass(frozen=True)
class SamplingOptions:
    """How one id is chosen from its logits. The defaults are those published with the 3B checkpoint.

    Args:
        do_sample: draw at random; False takes the most likely id and ignores temperature, top_k and top_p.
        temperature: divides the logits; above 0.
        top_k: keep the k most likely ids; None keeps all.
        top_p: keep the most likely ids whose probabilities reach p together, 0 < p <= 1; None keeps all.
        ras_win_len: columns that repetition-aware sampling looks back on; None switches it off. It also works on
            greedy choices, where a run of equal codes is a common way to get stuck.
        ras_win_max_num_repeat: how often an id may lie in the window before it is drawn again.
        text_guidance_scale: how many times what the text changes in the logits of a column counts; 1 runs the model
            once a step, anything above twice. For models that were trained on hidden texts, see `guidance.py`.
            (transformers' guidance_scale is another thing, which its own class refuses.)
        eos_codebooks: how many codebooks, from the first on, may end the sound; None: each of them, as published. A
            small model guesses the upper ones, and its guess may be an end.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = 0.95
    ras_win_len: int | None = 7
    ras_win_max_num_repeat: int = 2
    text_guidance_scale: float = 1.0
    eos_codebooks: int | None = None

    def validate(self, num_ids: int | None = None) -> "SamplingOptions":
        """These options, checked.

        Args:
            num_ids: ids to choose from, the upper end of top_k; not checked when None.

        Raises:
            OptionError: a value outside its range; the message names the option, the value and the range.
        """
        check_value("do_sample", self.do_sample, isinstance(self.do_sample, bool), "True or False")
        _check_temperature(self.temperature, self.do_sample)
        if self.top_k is not None:
            check_count("top_k", self.top_k, 1, num_ids, "None to keep every id")
        if self.top_p is not None:
            in_range = is_number(self.top_p) and 0 < self.top_p <= 1
            check_value("top_p", self.top_p, in_range, "above 0 and at most 1, or None to keep every id")
        if self.ras_win_len is not None:
            check_count("ras_win_len", self.ras_win_len, 1, MOST, "None to switch repetition-aware sampling off")
        check_count("ras_win_max_num_repeat", self.ras_win_max_num_repeat, 1, MOST)
        scale = self.text_guidance_scale
        check_value(
            "text_guidance_scale", scale, is_number(scale) and 1 <= scale < math.inf, "a finite number of at least 1"
        )
        if self.eos_codebooks is not None:
            check_count("eos_codebooks", self.eos_codebooks, 1, MOST, "None for all of them")
        return self


def _check_temperature(temperature: float, do_sample: bool) -> None:
    if do_sample:
        valid = is_number(temperature) and 0 < temperature < math.inf
        check_value(
            "temperature", temperature, valid, "a finite number above 0; for the most likely id use do_sample=False"
        )
    else:
        check_value("temperature", temperature, is_number(temperature) and temperature >= 0, "a number of at least 0")


def read_sampling(given: Mapping[str, Any], checkpoint: object, num_ids: int) -> SamplingOptions:
    """The sampling options of a call: what it gives, else what the checkpoint says, else our defaults.

    Args:
        given: the call's options by name; names that are not fields of `SamplingOptions` are passed over.
        checkpoint: an object whose attributes of those names are defaults, such as a GenerationConfig; None for none.
        num_ids: ids of one codebook, markers included. Only a top_k that the call gives can be too large for it.

    Raises:
        OptionError: a value outside its range.
    """
    names = [field.name for field in fields(SamplingOptions)]
    values = {name: value for name in names if (value := getattr(checkpoint, name, None)) is not None}
    options = SamplingOptions(**{**values, **{name: given[name] for name in names if name in given}})
    if not options.do_sample and "ras_win_len" not in given:
        options = replace(options, ras_win_len=None)  # greedy means greedy, unless asked
    return options.validate(num_ids if "top_k" in given else None)


NOT_FINITE = (
    "the model gave logits with NaN or infinity. Usual reasons: float16, whose range is too small (use bfloat16 or "
    "float32), or damaged weights."
)


def check_finite(logits: Tensor, where: str) -> Tensor:
    """The logits, if one can choose from them; -inf is allowed.

    Raises:
        NumericsError: a NaN or +inf among them; the message begins with `where`.
    """
    if not bool((logits < math.inf).all()):
        raise NumericsError(f"{where}: {NOT_FINITE}")
    return logits


def filter_logits(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Logits after temperature, then top-k, then top-p, each along the last dimension.

    Args:
        logits: [..., V]; -inf marks an id that must not be chosen.
        options: the first three of them are used; top_k above V keeps all.

    Returns:
        [..., V] float32; -inf where an id was filtered out. The most likely id always stays.
    """
    logits = logits.float() / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        lowest_kept = logits.topk(options.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest_kept, -math.inf)
    if options.top_p is not None and options.top_p < 1:
        logits = _keep_top_p(logits, options.top_p)
    return logits


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """[..., V] -> [..., V]: an id stays where the more likely ids together have less than top_p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # of equal ones the lower id first
    probabilities = ordered.softmax(dim=-1)
    more_likely = probabilities.cumsum(dim=-1) - probabilities
    drop = more_likely >= top_p  # never the most likely id: nothing is more likely
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def uniforms(seeds: Tensor, steps: Tensor, num: int) -> Tensor:
    """Random numbers that are a function of (seed, step, lane) alone: no state, so that no row can disturb another.

    Args:
        seeds, steps: [B] int64, at least 0.
        num: lanes.

    Returns:
        [B, num], 0 <= u < 1: float64 in steps of 2**-52, or float32 of 2**-24 on a device that has no more (mps).

    Source: the finalizer of SplitMix64 (Steele, Lea and Flood 2014), twice.
    """
    lanes = torch.arange(num, device=seeds.device)  # [num]
    mixed = _mix(_mix(seeds) + steps)[:, None] + (lanes + 1) * _GOLDEN  # wraps around, as it is meant to
    bits, kind = (24, torch.float32) if seeds.device.type == "mps" else (52, torch.float64)
    return (_mix(mixed) >> 64 - bits & (1 << bits) - 1).to(kind) / (1 << bits)


# Odd constants of SplitMix64, as signed 64-bit integers.
_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """[...] int64 -> int64 whose every bit depends on every bit of `x`."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A right shift that brings in zeros."""
    return x >> bits & (1 << 64 - bits) - 1


def sample(logits: Tensor, options: SamplingOptions, noise: Tensor) -> Tensor:
    """One id for every row of logits.

    Args:
        logits: [..., V].
        options: `do_sample=False` takes the most likely id and needs no noise.
        noise: [...], see `uniforms`.

    Returns:
        [...] int64 ids.
    """
    if not options.do_sample:
        return logits.argmax(dim=-1)
    return draw(filter_logits(logits, options), noise)


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """[..., V] logits -> [...] ids: each is where the probabilities, added up from id 0 on, pass its `noise`."""
    reached = logits.float().softmax(dim=-1).to(noise.dtype).cumsum(dim=-1)  # [..., V]
    return (reached <= noise[..., None] * reached[..., -1:]).sum(dim=-1)


def repetition_aware(ids: Tensor, logits: Tensor, window: Tensor, options: SamplingOptions, noise: Tensor) -> Tensor:
    """Draws again, from the unfiltered distribution, every id that already lies too often in its codebook's window.

    The redraw ignores temperature, top-k and top-p on purpose: those made the repetition likely (VALL-E 2,
    https://arxiv.org/abs/2406.05370, section 3.1). It is random in greedy mode too.

    Args:
        ids: [..., K] sampled ids.
        logits: [..., K, V] they were sampled from, before filtering.
        window: [..., K, W] the last columns, W <= ras_win_len; a cell that must not count (stream bos, stream eos,
            padding) is -1.
        options: `ras_win_len=None` returns `ids` as they are.
        noise: [..., K] of the redraws, other numbers than those of the draws.

    Returns:
        [..., K] int64 ids.
    """
    if options.ras_win_len is None:
        return ids
    repeats = (window == ids.unsqueeze(-1)).sum(dim=-1)  # [..., K]
    return torch.where(repeats >= options.ras_win_max_num_repeat, draw(logits, noise), ids)
