"""What an engine is asked for, and what it answers. No model and no device: tensors here are small and on the CPU."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import OptionError, PromptError, check_count
from higgs_audio.generation.checks import audio_mask, check_columns, check_ids
from higgs_audio.generation.sampling import SamplingOptions

FINISH_REASONS = ("stop", "length", "silence", "repetition", "cancelled")
LEAST_URGENT = 2**31
Column = tuple[int, ...]  # [K] ids of one step, markers included


@dataclass(frozen=True, eq=False)
class Request:
    """One segment of sound that is to follow a prompt.

    Args:
        input_ids: `[T]` int64, one placeholder for each column, ending in <|audio_out_bos|>.
        columns: `[F, K]` int64, the prompt's delayed columns, F at least 0.
        sampling: how ids are chosen.
        seed: of the draws.
        min_frames, max_frames: of the segment; a segment that reaches max_frames ends with "length".
        negative_ids: `[T]`, the prompt that guidance compares with; needed unless `sampling.text_guidance_scale` is 1.
        prefix: so many first positions are likely to be asked for again, such as those of a voice.
        priority: lower ones go first, equal ones in the order of their arrival.
        guarded: whether it is stopped where its codes show that it is stuck.
        is_offline: whether nobody waits for its columns one by one; where all are, prompts are read at once.

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
    guarded: bool = False
    is_offline: bool = False

    def __post_init__(self) -> None:
        self.sampling.validate()
        check_count("max_frames", self.max_frames, 1)
        check_count("min_frames", self.min_frames, 0, self.max_frames)
        check_count("seed", self.seed, 0, 2**63 - 1)
        check_count("priority", self.priority, -LEAST_URGENT, LEAST_URGENT)
        if (self.sampling.text_guidance_scale != 1) != (self.negative_ids is not None):
            raise OptionError(
                f"text_guidance_scale={self.sampling.text_guidance_scale} and negative_ids="
                f"{'None' if self.negative_ids is None else 'given'}: guidance needs both, none needs neither"
            )

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it takes: two with guidance."""
        return 1 if self.negative_ids is None else 2

    def check(self, config: HiggsAudioConfig) -> None:
        """Whether a model of that `config` can read its prompt.

        Raises:
            PromptError: another shape, an id that the model does not know, an end where no sound begins, or two prompts
                with placeholders in other places.
            CodesError: columns with impossible codes.
            OptionError: a prefix that is not shorter than the prompt.
        """
        ids, columns = self.input_ids, self.columns
        for name, given in (
            ("input_ids", ids),
            ("negative_ids", ids if self.negative_ids is None else self.negative_ids),
        ):
            if given.ndim != 1 or not len(given) or given.shape != ids.shape:
                raise PromptError(f"{name} is {tuple(given.shape)}; give [T], at least one token, both of one length")
            check_ids(given, config, name)
            if not torch.equal(audio_mask(given, config), audio_mask(ids, config)):
                raise PromptError(f"{name} must have its placeholders of sound where input_ids has them")
        if int(ids[-1]) != config.audio_out_bos_token_id:
            raise PromptError("the prompt must end in <|audio_out_bos|>, where sound begins (force_audio=True)")
        wanted = (int(audio_mask(ids, config).sum()), config.audio_num_codebooks)
        if columns.shape != wanted:
            raise PromptError(f"{wanted[0]} placeholders and columns {tuple(columns.shape)}: give {list(wanted)}")
        check_columns(columns[None], config)
        check_count("prefix", self.prefix, 0, len(ids) - 1)

    def num_positions(self, num_codebooks: int) -> int:
        """Positions of the cache that it can come to need."""
        return len(self.input_ids) + self.max_frames + num_codebooks + 1
