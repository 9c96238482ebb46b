"""The state machine of one row of a batch. It takes logits and is independent of the model.

The last token and the open segment of a row determine its next step:

    the last token is <|audio_out_bos|>   a segment opens: placeholder + bos column, nothing is sampled
    a segment is open                     placeholder + a sampled column of K codes, with forced bos and eos
    the segment has its last column       <|audio_eos|>, nothing is sampled
    otherwise                             a sampled text token
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import Column, DelayState
from higgs_audio.errors import PromptError
from higgs_audio.generation.inputs import Inputs
from higgs_audio.generation.output import Step
from higgs_audio.generation.rules import Rules
from higgs_audio.generation.sampling import check_finite, repetition_aware, sample, uniforms


@dataclass(frozen=True)
class RowState:
    """The state of one row between two steps.

    Attributes:
        token: last token of the row.
        limit: maximum number of steps.
        seed: seed of the row's random numbers.
        steps: steps so far.
        delay_state: state of the open segment; None in text.
        recent: the last `ras_win_len` columns of the segment.
        text: new text tokens; kept only if there are stop strings.
        finish_reason: "stop" or "length" once the row has finished.
    """

    token: int
    limit: int
    seed: int = 0
    steps: int = 0
    delay_state: DelayState | None = None
    recent: tuple[Column, ...] = ()
    text: tuple[int, ...] = ()
    finish_reason: str | None = None


def start_row(inputs: Inputs, row: int, limit: int, seed: int, rules: Rules) -> RowState:
    """Returns the state of a row at the end of its prompt, which may be inside a segment."""
    columns = inputs.open_segment(row)
    delay_state = rules.new_delay_state().resume(columns) if columns else None
    window = rules.sampling.ras_win_len or 0
    recent = tuple(columns[-window:]) if window else ()
    return RowState(int(inputs.input_ids[row, -1]), limit, seed, delay_state=delay_state, recent=recent)


def take_step(
    row: int, state: RowState, text_logits: Tensor | None, audio_logits: Tensor, rules: Rules
) -> tuple[RowState, Step]:
    """Chooses the next token of a row and advances its state; for arguments and errors see `next_step`."""
    index = state.delay_state.num_columns if state.delay_state else 0
    token, sampled = next_step(state, text_logits, audio_logits, rules)
    state, column = advance(state, token, sampled, rules)
    return state, Step(row, token, column, None if column is None else index, state.finish_reason)


def next_step(
    state: RowState, text_logits: Tensor | None, audio_logits: Tensor, rules: Rules
) -> tuple[int, Sequence[int] | None]:
    """Chooses the next token of a row and, inside a segment, the ids of its column.

    Args:
        state: the row before the step.
        text_logits: [V_text] at the row's last position; None without a text head, and for a row in audio.
        audio_logits: [K, V + 2] at the row's last position.
        rules: rules of the call.

    Returns:
        (token, None), or (placeholder, K sampled ids); `advance` then writes the bos and eos of the delay pattern.

    Raises:
        NumericsError: the logits contain NaN or infinity.
        PromptError: the next token is text, and the model has no text head.
    """
    config = rules.config
    if state.delay_state is not None and state.delay_state.is_finished:
        return config.audio_eos_token_id, None
    if state.delay_state is not None:
        check_finite(audio_logits, f"step {state.steps}, audio")
        return config.audio_out_token_idx, _sample_column(state, state.delay_state, audio_logits, rules)
    if state.token == config.audio_out_bos_token_id:
        return config.audio_out_token_idx, [config.audio_stream_bos_id] * config.audio_num_codebooks
    if text_logits is None:
        raise PromptError(
            "the next token is text, and this checkpoint has no text head; end the prompt with <|audio_out_bos|> "
            "(force_audio=True) and pass eos_token_id=config.audio_eos_token_id to generate audio alone"
        )
    check_finite(text_logits, f"step {state.steps}, text")
    noise = step_noise(state, 1, text_logits.device)[0]
    return int(sample(mask_text(text_logits, config), rules.sampling, noise)), None


def step_noise(state: RowState, num: int, device: torch.device) -> Tensor:
    """Returns the row's random numbers for this step, [num]."""
    seed, step = (torch.tensor([value], device=device) for value in (state.seed, state.steps))
    return uniforms(seed, step, num)[0]


def advance(state: RowState, token: int, sampled: Sequence[int] | None, rules: Rules) -> tuple[RowState, Column | None]:
    """Returns the state after a step, with its finish reason, and the step's column [K] with forced bos and eos."""
    state = replace(state, token=token, steps=state.steps + 1)
    column = None
    if sampled is not None:
        column, delay_state = (state.delay_state or rules.new_delay_state()).push(sampled)
        window = rules.sampling.ras_win_len or 0
        state = replace(state, delay_state=delay_state, recent=(*state.recent, column)[-window:] if window else ())
    elif rules.stop_strings:
        state = replace(state, text=(*state.text, token))
    state = replace(state, finish_reason=_finish_reason(state, rules))
    closed = state.delay_state is not None and column is None
    return (replace(state, delay_state=None, recent=()) if closed else state), column


def mask_text(logits: Tensor, config: HiggsAudioConfig) -> Tensor:
    """Masks, in logits [V_text], the ids that only the state machine writes: placeholders and <|audio_eos|>."""
    forced = [id for id in (*config.audio_placeholder_ids, config.audio_eos_token_id) if id < logits.shape[-1]]
    return logits.float().index_fill(-1, torch.tensor(forced, dtype=torch.long, device=logits.device), float("-inf"))


def mask_audio(logits: Tensor, delay_state: DelayState, min_frames: int, eos_codebooks: int | None = None) -> Tensor:
    """Masks, in logits [K, V + 2], stream bos, which only the delay pattern writes, and every eos that is not allowed.

    An eos is allowed after `min_frames` frames, in the first `eos_codebooks` codebooks (None: in all).
    """
    logits = logits.float().clone()
    logits[:, delay_state.bos] = float("-inf")
    codebooks = torch.arange(delay_state.num_codebooks, device=logits.device)
    frames = delay_state.num_columns - 1 - codebooks  # [K] frame of each codebook's cell
    logits[frames < min_frames, delay_state.eos] = float("-inf")
    if eos_codebooks is not None:
        logits[eos_codebooks:, delay_state.eos] = float("-inf")
    return logits


def _sample_column(state: RowState, delay: DelayState, logits: Tensor, rules: Rules) -> Sequence[int]:
    """Samples K ids from [K, V + 2] logits. In the column after frame `max_frames`, codebook 0 becomes eos."""
    logits = mask_audio(logits, delay, rules.min_frames, rules.sampling.eos_codebooks)
    noise, redraw_noise = step_noise(state, 2 * delay.num_codebooks, logits.device).chunk(2)  # [K] each
    ids = sample(logits, rules.sampling, noise)  # [K]
    if state.recent:
        window = torch.tensor(state.recent, device=ids.device).T  # [K, W]
        window = window.masked_fill(window >= delay.bos, -1)  # bos and eos do not count as repetitions
        ids = repetition_aware(ids, logits, window, rules.sampling, redraw_noise)
    sampled: list[int] = ids.tolist()
    if rules.max_frames is not None and delay.total_columns is None and delay.num_columns == rules.max_frames + 1:
        sampled[0] = delay.eos
    return sampled


def _finish_reason(state: RowState, rules: Rules) -> str | None:
    """Returns the reason if the row ends with this step; `state` still has the segment that <|audio_eos|> closes."""
    delay = state.delay_state if state.token == rules.config.audio_eos_token_id else None
    if delay is not None and rules.max_frames is not None and delay.num_frames == rules.max_frames:
        return "length"
    if state.token in rules.eos_token_ids:
        return "stop"
    if state.text and any(stop in rules.tokenizer.decode(list(state.text)) for stop in rules.stop_strings):
        return "stop"
    return "length" if state.steps >= state.limit else None
