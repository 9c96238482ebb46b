"""Requests to the engine. They are independent of model and device: their tensors are small and on the CPU."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import OptionError, PromptError, check_count
from higgs_audio.generation.checks import audio_mask, check_columns, check_ids
from higgs_audio.generation.sampling import SamplingOptions

MAX_PRIORITY = 2**31


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt and how to continue it with one audio segment.

    Args:
        input_ids: `[T]` int64, one placeholder for each column, ending in <|audio_out_bos|>.
        columns: `[F, K]` int64, the prompt's delayed columns, F at least 0.
        sampling: sampling options.
        seed: seed of the random draws.
        min_frames, max_frames: length of the segment; a segment that reaches max_frames ends with "length".
        negative_ids: `[T]`, the prompt without the text, for guidance; required unless
            `sampling.text_guidance_scale` is 1.
        prefix: length of the prefix that later requests are likely to share, such as that of a voice; its keys and
            values are cached.
        priority: lower values run first, equal values in order of arrival.
        detect_loops: whether the engine ends the segment when its codes show that the model is stuck (see
            `LoopDetector`).
        is_offline: whether the caller does not wait for single columns; if all requests are offline, whole prompts are
            prefilled at once.

    Raises:
        OptionError: a value outside its range, or guidance without `negative_ids`.
    """

    input_ids: Tensor
    columns: Tensor
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    seed: int = 0
    min_frames: int = 0
    max_frames: int = 1000
    negative_ids: Tensor | None = None
    prefix: int = 0
    priority: int = 0
    detect_loops: bool = False
    is_offline: bool = False

    def __post_init__(self) -> None:
        self.sampling.validate()
        check_count("max_frames", self.max_frames, 1)
        check_count("min_frames", self.min_frames, 0, self.max_frames)
        check_count("seed", self.seed, 0, 2**63 - 1)
        check_count("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if (self.sampling.text_guidance_scale != 1) != (self.negative_ids is not None):
            raise OptionError(
                f"text_guidance_scale={self.sampling.text_guidance_scale} and negative_ids="
                f"{'None' if self.negative_ids is None else 'given'}: guidance requires both; without guidance, keep "
                "text_guidance_scale at 1 and negative_ids at None"
            )

    @property
    def num_slots(self) -> int:
        """Number of slots of the KV cache that the request needs: one, two with guidance."""
        return 1 if self.negative_ids is None else 2

    def check(self, config: HiggsAudioConfig) -> None:
        """Checks that a model with `config` can process the prompt.

        Raises:
            PromptError: a wrong shape, an id outside the vocabulary, a prompt that does not end where audio begins, or
                two prompts with placeholders at different positions.
            CodesError: columns with impossible codes.
            OptionError: a prefix that is not shorter than the prompt.
        """
        ids, columns = self.input_ids, self.columns
        for name, given in (
            ("input_ids", ids),
            ("negative_ids", ids if self.negative_ids is None else self.negative_ids),
        ):
            if given.ndim != 1 or not len(given) or given.shape != ids.shape:
                raise PromptError(f"{name} is {tuple(given.shape)}; give [T] with T >= 1, the same T for both prompts")
            check_ids(given, config, name)
            if not torch.equal(audio_mask(given, config), audio_mask(ids, config)):
                raise PromptError(f"{name} must have its audio placeholders where input_ids has them")
        if int(ids[-1]) != config.audio_out_bos_token_id:
            raise PromptError("the prompt must end in <|audio_out_bos|>, where audio begins (force_audio=True)")
        expected = (int(audio_mask(ids, config).sum()), config.audio_num_codebooks)
        if columns.shape != expected:
            raise PromptError(
                f"{expected[0]} placeholders, but columns have the shape {tuple(columns.shape)}; give {list(expected)}"
            )
        check_columns(columns[None], config)
        check_count("prefix", self.prefix, 0, len(ids) - 1)

    def num_positions(self, num_codebooks: int) -> int:
        """Returns the number of positions that may be needed: the prompt, and the columns of `max_frames` frames."""
        return len(self.input_ids) + self.max_frames + num_codebooks + 1
