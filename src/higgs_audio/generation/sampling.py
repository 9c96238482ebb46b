"""Sampling: temperature, top-k, top-p, the draw, and repetition-aware sampling, as pure functions on tensors.

`SamplingOptions` describes the options and their defaults for all samplers: these functions, the engine's batched ones
and the C ones (`tests/generation/test_sampling.py` compares all three, option by option).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from higgs_audio.errors import NumericsError, check_count, check_value, is_number

MAX_COUNT = 2**31 - 1  # maximum of options that are counts; torch's own integers go up to 2**63


@dataclass(frozen=True)
class SamplingOptions:
    """How an id is chosen from its logits. The defaults were published with the 3B checkpoint.

    Args:
        do_sample: sample at random; False chooses the most likely id and ignores temperature, top_k and top_p.
        temperature: divides the logits; above 0.
        top_k: keep the k most likely ids; None keeps all.
        top_p: keep the most likely ids whose probabilities sum to p, 0 < p <= 1; None keeps all.
        ras_win_len: number of columns in the window of repetition-aware sampling; None disables it. It also applies to
            greedy choices, which often repeat one code without end.
        ras_win_max_num_repeat: an id that occurs this many times in the window is drawn again.
        text_guidance_scale: factor by which guidance amplifies the effect of the text on the logits of a column. 1 runs
            the model once per step, a larger value twice. For models that were trained on masked texts, see
            `guidance.py`. (It is not transformers' guidance_scale, which transformers' class for this model rejects.)
        eos_codebooks: only the first `eos_codebooks` codebooks may end the audio; None allows all, as published. A
            small model predicts the upper codebooks poorly, and may predict an end by mistake.
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
        """Checks the options and returns them.

        Args:
            num_ids: number of ids to choose from, which top_k must not exceed; not checked when None.

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
            check_count("ras_win_len", self.ras_win_len, 1, MAX_COUNT, "None to disable repetition-aware sampling")
        check_count("ras_win_max_num_repeat", self.ras_win_max_num_repeat, 1, MAX_COUNT)
        scale = self.text_guidance_scale
        check_value(
            "text_guidance_scale", scale, is_number(scale) and 1 <= scale < math.inf, "a finite number of at least 1"
        )
        if self.eos_codebooks is not None:
            check_count("eos_codebooks", self.eos_codebooks, 1, MAX_COUNT, "None for all of them")
        return self


class SamplingKwargs(TypedDict, total=False):
    """The fields of `SamplingOptions` as keyword arguments; defaults come from the checkpoint."""

    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    ras_win_len: int | None
    ras_win_max_num_repeat: int
    text_guidance_scale: float
    eos_codebooks: int | None


SAMPLING_NAMES = tuple(SamplingKwargs.__annotations__)


def _check_temperature(temperature: float, do_sample: bool) -> None:
    if do_sample:
        valid = is_number(temperature) and 0 < temperature < math.inf
        check_value(
            "temperature", temperature, valid, "a finite number above 0; for the most likely id use do_sample=False"
        )
    else:
        check_value("temperature", temperature, is_number(temperature) and temperature >= 0, "a number of at least 0")


def read_sampling(given: Mapping[str, Any], checkpoint: object, num_ids: int) -> SamplingOptions:
    """Returns the sampling options of a call, with defaults from the checkpoint, then from `SamplingOptions`.

    Args:
        given: the call's options by name; names that are not fields of `SamplingOptions` are ignored.
        checkpoint: an object with defaults as attributes, such as a GenerationConfig, or None.
        num_ids: ids of one codebook, with stream bos and stream eos. Only a top_k in `given` is checked against it.

    Raises:
        OptionError: a value outside its range.
    """
    values = {name: value for name in SAMPLING_NAMES if (value := getattr(checkpoint, name, None)) is not None}
    options = SamplingOptions(**{**values, **{name: given[name] for name in SAMPLING_NAMES if name in given}})
    if not options.do_sample and "ras_win_len" not in given:
        options = replace(options, ras_win_len=None)  # greedy decoding has no redraws unless the call requests them
    return options.validate(num_ids if "top_k" in given else None)


NOT_FINITE = (
    "the model returned logits with NaN or infinity. Common causes: float16, whose range is too small (use bfloat16 or "
    "float32), or damaged weights."
)


def check_finite(logits: Tensor, where: str) -> Tensor:
    """Returns the logits if they are finite or -inf.

    Raises:
        NumericsError: the logits contain NaN or +inf; the message begins with `where`.
    """
    if not bool((logits < math.inf).all()):
        raise NumericsError(f"{where}: {NOT_FINITE}")
    return logits


def filter_logits(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Applies temperature, then top-k, then top-p, each along the last dimension.

    Args:
        logits: [..., V]; -inf marks an id that must not be chosen.
        options: temperature, top_k and top_p are used; a top_k above V keeps all ids.

    Returns:
        [..., V] float32; -inf where an id was filtered out. The most likely id is always kept.
    """
    logits = logits.float() / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        lowest_kept = logits.topk(options.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest_kept, -math.inf)
    if options.top_p is not None and options.top_p < 1:
        logits = _keep_top_p(logits, options.top_p)
    return logits


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keeps the ids of logits [..., V] for which the total probability of all more likely ids is below top_p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # of equal logits the lower id comes first
    probabilities = ordered.softmax(dim=-1)
    more_likely = probabilities.cumsum(dim=-1) - probabilities
    drop = more_likely >= top_p  # never drops the most likely id, for which the sum is 0
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def uniforms(seeds: Tensor, steps: Tensor, num: int) -> Tensor:
    """Returns random numbers that depend on (seed, step, index) alone, so rows of a batch are independent.

    Args:
        seeds, steps: [B] int64, at least 0.
        num: numbers per row.

    Returns:
        [B, num], 0 <= u < 1: float64 in steps of 2**-52, or float32 in steps of 2**-24 on a device without float64
        (mps).
    """
    indices = torch.arange(2, num + 2, device=seeds.device)  # [num]
    mixed = splitmix64(splitmix64(splitmix64(seeds) + steps)[:, None], indices)
    bits, kind = (24, torch.float32) if seeds.device.type == "mps" else (52, torch.float64)
    return (mixed >> 64 - bits & (1 << bits) - 1).to(kind) / (1 << bits)


# Odd constants of SplitMix64, as signed 64-bit integers.
_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix64(seed: Tensor | int, index: Tensor | int = 1) -> Tensor:
    """Returns output number `index` of the SplitMix64 generator seeded with `seed`, as int64.

    Every bit of the output depends on every bit of `seed` and `index`. Tensors [...] are int64 and broadcast; sums and
    products wrap around.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.

    >>> splitmix64(0, torch.arange(1, 4)).tolist()  # the reference implementation's first outputs for seed 0
    [-2152535657050944081, 7960286522194355700, 487617019471545679]
    """
    x = torch.as_tensor(seed + index * _GOLDEN)
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Returns `x` shifted right, filled with zeros."""
    return x >> bits & (1 << 64 - bits) - 1


def sample(logits: Tensor, options: SamplingOptions, noise: Tensor) -> Tensor:
    """Returns one id for every row of logits.

    Args:
        logits: [..., V].
        options: with `do_sample=False` the most likely id is returned, and `noise` is not used.
        noise: [...], uniform random numbers; see `uniforms`.

    Returns:
        [...] int64 ids.
    """
    if not options.do_sample:
        return logits.argmax(dim=-1)
    return draw(filter_logits(logits, options), noise)


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draws ids [...] from logits [..., V]: the first id whose cumulative probability exceeds its `noise` [...]."""
    reached = logits.float().softmax(dim=-1).to(noise.dtype).cumsum(dim=-1)  # [..., V]
    return (reached <= noise[..., None] * reached[..., -1:]).sum(dim=-1)


def repetition_aware(ids: Tensor, logits: Tensor, window: Tensor, options: SamplingOptions, noise: Tensor) -> Tensor:
    """Redraws every id that occurs too often in its codebook's window, from the unfiltered distribution.

    The redraw ignores temperature, top-k and top-p, because those made the repetition likely (VALL-E 2,
    https://arxiv.org/abs/2406.05370, section 3.1). It is random in greedy mode too.

    Args:
        ids: [..., K] sampled ids.
        logits: [..., K, V] logits that the ids were sampled from, before filtering.
        window: [..., K, W] the last columns, W <= ras_win_len; -1 in cells that are not codes (stream bos, stream eos,
            padding).
        options: with `ras_win_len=None` the ids are returned unchanged.
        noise: [..., K] random numbers for the redraws, different from those of the draws.

    Returns:
        [..., K] int64 ids.
    """
    if options.ras_win_len is None:
        return ids
    repeats = (window == ids.unsqueeze(-1)).sum(dim=-1)  # [..., K]
    return torch.where(repeats >= options.ras_win_max_num_repeat, draw(logits, noise), ids)
