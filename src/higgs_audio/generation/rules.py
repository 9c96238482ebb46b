"""The rules of one call of `generate`: its options, checked, with defaults from the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import DelayState
from higgs_audio.errors import OptionError, check_count, nearest
from higgs_audio.generation.checks import vocabulary_size
from higgs_audio.generation.options import OPTION_NAMES
from higgs_audio.generation.sampling import SamplingOptions, read_sampling

DEFAULT_MAX_NEW_TOKENS = 1024  # 40 seconds of audio: 25 columns per second
# Accepted without effect, so that a training batch can be passed to `generate` unchanged.
LABEL_NAMES = ("label", "labels", "audio_labels", "label_ids", "label_audio_ids")


@dataclass(frozen=True)
class Rules:
    """The rules that apply to every row of one call."""

    config: HiggsAudioConfig
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    eos_token_ids: frozenset[int] = frozenset()
    min_frames: int = 0
    max_frames: int | None = None
    stop_strings: tuple[str, ...] = ()
    tokenizer: Any = None

    def new_delay_state(self) -> DelayState:
        """Returns the state of a segment before its first column."""
        config = self.config
        return DelayState(config.audio_num_codebooks, config.audio_stream_bos_id, config.audio_stream_eos_id)


def read_rules(config: HiggsAudioConfig, generation_config: Any, options: Mapping[str, Any]) -> Rules:
    """Returns the rules of a call from its options, with defaults from the checkpoint's `generation_config`.

    Raises:
        OptionError: an unknown option, or a value outside its range.
    """
    for name in options:
        if name not in OPTION_NAMES and name not in LABEL_NAMES:
            raise OptionError(f"generate() has no option {name!r}; {nearest(name, OPTION_NAMES)}")
    min_frames, max_frames = options.get("min_frames", 0), options.get("max_frames")
    if max_frames is not None:
        check_count("max_frames", max_frames, 1)
    check_count("min_frames", min_frames, 0, max_frames)
    stop_strings, tokenizer = _stop_strings(options.get("stop_strings")), options.get("tokenizer")
    if stop_strings and not callable(getattr(tokenizer, "decode", None)):
        raise OptionError("stop_strings needs tokenizer= to decode the new text; pass the processor's tokenizer")
    return Rules(
        config=config,
        sampling=read_sampling(options, generation_config, config.codebook_rows),
        eos_token_ids=_end_tokens(options.get("eos_token_id", config.eos_token_id), config),
        min_frames=min_frames,
        max_frames=max_frames,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
    )


def _end_tokens(given: Any, config: HiggsAudioConfig) -> frozenset[int]:
    """Returns the ids that end a row. An id in the config may exceed a small vocabulary; it is then never sampled."""
    size = vocabulary_size(config)
    named = {*_listed(config.eos_token_id), config.audio_eos_token_id}
    ids = _listed(given)
    if not all(type(id) is int and (0 <= id < size or id in named) for id in ids):
        raise OptionError(
            f"eos_token_id={given!r:.100}; allowed: an id from 0 to {size - 1}, a list of them, or None to stop "
            "at a limit only"
        )
    return frozenset(ids)


def _stop_strings(given: Any) -> tuple[str, ...]:
    """Returns the strings that end a row; an empty string means none."""
    strings = [] if given == "" else _listed(given)
    if not all(isinstance(string, str) and string for string in strings):
        raise OptionError(f"stop_strings={given!r:.100}; allowed: a string, or a list of strings, none of them empty")
    return tuple(strings)


def _listed(given: Any) -> list[Any]:
    """Returns a list of the values of an option that may be one value, several, or None."""
    if isinstance(given, list | tuple | set | frozenset):
        return list(given)
    return [] if given is None else [given]


def read_limits(options: Mapping[str, Any], lengths: Sequence[int]) -> list[int]:
    """Returns the maximum number of steps of each row.

    Args:
        options: options of the call; `max_new_tokens` and `max_length` are read.
        lengths: number of positions of each prompt, with placeholders and without padding.

    Raises:
        OptionError: a limit below 1, or a max_length that the longest prompt already reaches.
    """
    given = {name: options[name] for name in ("max_new_tokens", "max_length") if options.get(name) is not None}
    for name, value in given.items():
        check_count(name, value, 1)
    if "max_length" not in given:
        return [given.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)] * len(lengths)
    remaining = [given["max_length"] - length for length in lengths]
    if min(remaining) < 1:
        raise OptionError(
            f"max_length={given['max_length']}, but a prompt already has {max(lengths)} positions (one for each column "
            "of its audio); pass a larger max_length, or max_new_tokens, which does not count the prompt"
        )
    return [min(steps, given.get("max_new_tokens", steps)) for steps in remaining]


def read_seeds(seed: Any, num_rows: int) -> list[int]:
    """Returns one seed per row; None draws them from torch's global generator.

    Raises:
        OptionError: `seed` is not None, an int, or one int for each row.
    """
    if seed is None:
        seed = torch.randint(2**63 - num_rows, (num_rows,)).tolist()
    seeds = [seed + row for row in range(num_rows)] if isinstance(seed, int) else seed
    if (
        not isinstance(seeds, list | tuple)
        or len(seeds) != num_rows
        or not all(isinstance(value, int) and 0 <= value < 2**63 for value in seeds)
    ):
        raise OptionError(f"seed={seed!r}; allowed: None, an int from 0 to 2**63 - 1, or a list of {num_rows} of them")
    return list(seeds)
