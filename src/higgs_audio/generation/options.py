"""The keyword options of `generate` and `stream`, as a type for editors and type checkers."""

from collections.abc import Collection, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_audio.generation.sampling import SamplingKwargs


class GenerateOptions(SamplingKwargs, total=False):
    """Keyword options of `generate` and `stream`; all of them may be omitted.

    The options of `SamplingKwargs` are the fields of `SamplingOptions`, which documents them. Defaults come from
    `model.generation_config`, then from `SamplingOptions`. With do_sample=False, repetition-aware sampling is off
    unless `ras_win_len` is passed.

    negative_prompt_ids: `[B, T]`, the unconditional prompts of guidance. By default they are `input_ids` with the last
        user text masked, which requires `tokenizer`. Without either, a text_guidance_scale that comes from the
        checkpoint is ignored.
    max_new_tokens: maximum number of steps of a row; a step is one text token or one column. F frames of audio take
        F + K + 1 columns, then <|audio_eos|> and an end token. 1024 when neither limit is passed.
    max_length: the same limit, counting the row's prompt (its placeholders, not its padding). With both limits, the
        lower one applies.
    min_frames, max_frames: bounds on the frames of each segment; 0 and no bound when omitted. A segment that reaches
        max_frames ends there, and its row finishes with "length".
    eos_token_id: one id or several that end a row; `config.eos_token_id` when omitted, None for no end token.
    stop_strings: one string or several that end a row once its new text contains one; requires `tokenizer`.
    tokenizer: decodes the new text for `stop_strings` and masks the text for guidance.
    seed: an int, which gives row b the seed `seed + b`; a list of B ints; or None to draw B seeds from torch's global
        generator.
    """

    negative_prompt_ids: Tensor | None
    max_new_tokens: int | None
    max_length: int | None
    min_frames: int
    max_frames: int | None
    eos_token_id: int | Collection[int] | None
    stop_strings: str | Collection[str] | None
    tokenizer: PreTrainedTokenizerBase | None
    seed: int | Sequence[int] | None


OPTION_NAMES = tuple(GenerateOptions.__annotations__)
