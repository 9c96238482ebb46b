"""Rules: what holds for every row of one call of `generate`, read strictly from its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import DelayState
from higgs_audio.errors import OptionError, check_count, nearest
from higgs_audio.generation.sampling import SamplingOptions, read_sampling

DEFAULT_MAX_NEW_TOKENS = 1024  # 40 seconds of sound: 25 columns a second
IGNORED = ("label", "labels", "audio_labels", "label_ids", "label_audio_ids")  # a training batch can be generated from
OPTIONS = (
    *(option.name for option in fields(SamplingOptions)),
    *("max_new_tokens", "max_length", "min_frames", "max_frames"),
    *("eos_token_id", "stop_strings", "tokenizer", "seed", "negative_prompt_ids"),
)


@dataclass(frozen=True)
class Rules:
    """What holds for every row of one call."""

    config: HiggsAudioConfig
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    eos_token_ids: frozenset[int] = frozenset()
    min_frames: int = 0
    max_frames: int | None = None
    stop_strings: tuple[str, ...] = ()
    tokenizer: Any = None

    def new_delay_state(self) -> DelayState:
        """The delay pattern before the first column of a segment."""
        config = self.config
        return DelayState(config.audio_num_codebooks, config.audio_stream_bos_id, config.audio_stream_eos_id)


def read_rules(config: HiggsAudioConfig, generation_config: Any, options: Mapping[str, Any]) -> Rules:
    """The rules that the options of a call give; what they leave open comes from the checkpoint's `generation_config`.

    Raises:
        OptionError: an unknown option, or a value outside its range.
    """
    for name in options:
        if name not in OPTIONS and name not in IGNORED:
            raise OptionError(f"generate() has no option {name!r}; {nearest(name, OPTIONS)}")
    min_frames, max_frames = options.get("min_frames", 0), options.get("max_frames")
    if max_frames is not None:
        check_count("max_frames", max_frames, 1)
    check_count("min_frames", min_frames, 0, max_frames)
    stop_strings, tokenizer = _stop_strings(options.get("stop_strings")), options.get("tokenizer")
    if stop_strings and not callable(getattr(tokenizer, "decode", None)):
        raise OptionError("stop_strings needs tokenizer= to read the new text; pass the processor's tokenizer")
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
    """Ids that end a row. What the config names may lie beyond a small vocabulary, and is then never chosen."""
    text: Any = config.text_config
    named = {*_listed(config.eos_token_id), config.audio_eos_token_id}
    ids = _listed(given)
    if not all(type(id) is int and (0 <= id < text.vocab_size or id in named) for id in ids):
        raise OptionError(
            f"eos_token_id={given!r:.100}; allowed: an id from 0 to {text.vocab_size - 1}, a list of them, or None for "
            "no end but a limit"
        )
    return frozenset(ids)


def _stop_strings(given: Any) -> tuple[str, ...]:
    """Strings that end a row; an empty one is none."""
    strings = [] if given == "" else _listed(given)
    if not all(isinstance(string, str) and string for string in strings):
        raise OptionError(f"stop_strings={given!r:.100}; allowed: a string, or a list of strings, none of them empty")
    return tuple(strings)


def _listed(given: Any) -> list[Any]:
    """What is given once, several times or (None) not at all."""
    if isinstance(given, list | tuple | set | frozenset):
        return list(given)
    return [] if given is None else [given]


def read_limits(options: Mapping[str, Any], lengths: Sequence[int]) -> list[int]:
    """Steps that each row may take; `lengths` are those of the prompts, placeholders counted, padding not.

    Raises:
        OptionError: a limit below 1, or none left behind the longest prompt.
    """
    given = {name: options[name] for name in ("max_new_tokens", "max_length") if options.get(name) is not None}
    for name, value in given.items():
        check_count(name, value, 1)
    if "max_length" not in given:
        return [given.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)] * len(lengths)
    rests = [given["max_length"] - length for length in lengths]
    if min(rests) < 1:
        raise OptionError(
            f"max_length={given['max_length']}, but a prompt has {max(lengths)} positions already (one for each column "
            "of its audio); give a larger max_length, or max_new_tokens, which does not count the prompt"
        )
    return [min(rest, given.get("max_new_tokens", rest)) for rest in rests]


def read_seeds(seed: Any, num_rows: int) -> list[int]:
    """One seed per row.

    Raises:
        OptionError: not None, an int, or one int for each row.
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
