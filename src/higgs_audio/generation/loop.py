"""The plain generation loop: one forward, one id per row, again. Slow and obvious; every fast path must agree with it.

A row is in one of four situations, told by its last token and its open segment:

    last token is <|audio_out_bos|>   the segment opens: placeholder + bos column, nothing is sampled
    a segment is open                 placeholder + one sampled column of K delayed codes, forced by the delay pattern
    a segment has its last column     <|audio_eos|>, nothing is sampled
    otherwise                         one sampled text token

`next_step` and `advance` are that state machine. They know logits, not the model. `stream` walks it over a batch and
`generate` is the concatenation of the stream. Every token of the result has been an input of the model in its place,
so running the model over the result as a prompt gives the same choices: after the last column of a segment comes one
forward of that column (as in training), then one of <|audio_eos|>.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import DelayState
from higgs_audio.errors import CodesError, PromptError
from higgs_audio.generation.checks import check_ids
from higgs_audio.generation.guidance import apply_guidance, duplicate_batch, negative_prompts
from higgs_audio.generation.rules import Rules, read_limits, read_rules, read_seeds
from higgs_audio.generation.sampling import check_finite, repetition_aware, sample, uniforms


class LanguageModel(Protocol):
    """What the loop needs of a model: its config and its forward pass. Sampling defaults are optional."""

    @property
    def config(self) -> HiggsAudioConfig: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


Column = tuple[int, ...]  # [K] ids of one step, markers included


@dataclass(frozen=True)
class Step:
    """What one step added to one row: a text token, or a placeholder with its column."""

    row: int
    token: int
    column: Column | None = None
    column_index: int | None = None  # of the column in its segment; 0 is the bos column, which opens a new segment
    finish_reason: str | None = None  # "stop" or "length" on the row's last step


@dataclass(frozen=True)
class GenerateOutput:
    """The whole of a stream.

    Indexes and unpacks like the tuple (sequences, audio_sequences); for a batch of one, `[1]` is that row's list of
    segments itself, which is what `HiggsAudioProcessor.decode` takes.

    Attributes:
        sequences: [B, T'] int64, the prompt and all new tokens, one placeholder per column; right of a row that ended
            earlier stands the pad token.
        audio_sequences: per row its segments, each [K, n] int64 of delayed columns from its bos column on. A segment
            continued from the prompt includes the prompt's columns.
        finish_reasons: per row "stop" (an end-of-stream token or a stop string) or "length" (a limit).
    """

    sequences: Tensor
    audio_sequences: list[list[Tensor]]
    finish_reasons: list[str]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        yield self[1]

    def __getitem__(self, index: int) -> Any:
        segments = self.audio_sequences[0] if len(self.audio_sequences) == 1 else self.audio_sequences
        return (self.sequences, segments)[index]


@dataclass(frozen=True)
class RowState:
    """Where one row stands. `token` is its last token, `limit` the steps it may take, `seed` that of its draws."""

    token: int
    limit: int
    seed: int = 0
    steps: int = 0
    delay_state: DelayState | None = None  # of the open segment
    recent: tuple[Column, ...] = ()  # its last ras_win_len columns
    text: tuple[int, ...] = ()  # new text tokens, kept where stop strings are looked for
    finish_reason: str | None = None


# The state machine of one row.


def next_step(
    state: RowState, text_logits: Tensor | None, audio_logits: Tensor, rules: Rules
) -> tuple[int, Sequence[int] | None]:
    """The next token of a row and, in audio, the ids sampled for its column.

    Args:
        state: the row before the step.
        text_logits: [V_text] at the row's last position; None without a text head, and for a row in audio.
        audio_logits: [K, V + 2] at the row's last position.
        rules: of the call.

    Returns:
        (token, None) or (placeholder, K ids); `advance` forces the delay pattern into the latter.

    Raises:
        NumericsError: the logits to choose from hold a NaN or infinity.
        PromptError: text is to be chosen without a text head.
    """
    config = rules.config
    if state.delay_state is not None and state.delay_state.finished:
        return config.audio_eos_token_id, None
    if state.delay_state is not None:
        check_finite(audio_logits, f"step {state.steps}, audio")
        return config.audio_out_token_idx, _sample_column(state, audio_logits, rules)
    if state.token == config.audio_out_bos_token_id:
        return config.audio_out_token_idx, [config.audio_stream_bos_id] * config.audio_num_codebooks
    if text_logits is None:
        raise PromptError(
            "the next token is text, and this checkpoint has no text head; end the prompt with <|audio_out_bos|> "
            "(force_audio=True) and give eos_token_id=config.audio_eos_token_id, so that sound is all it answers"
        )
    check_finite(text_logits, f"step {state.steps}, text")
    noise = step_noise(state, 1, text_logits.device)[0]
    return int(sample(mask_text(text_logits, config), rules.sampling, noise)), None


def step_noise(state: RowState, num: int, device: torch.device) -> Tensor:
    """The row's random numbers of this step, [num]."""
    seed, step = (torch.tensor([value], device=device) for value in (state.seed, state.steps))
    return uniforms(seed, step, num)[0]


def advance(state: RowState, token: int, sampled: Sequence[int] | None, rules: Rules) -> tuple[RowState, Column | None]:
    """The row after a step, finish reason included, and the step's column [K] with its forced markers."""
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
    """[V_text] logits with -inf for the ids that only the state machine writes: placeholders and <|audio_eos|>."""
    forced = [id for id in (*config.audio_placeholder_ids, config.audio_eos_token_id) if id < logits.shape[-1]]
    return logits.float().index_fill(-1, torch.tensor(forced, dtype=torch.long, device=logits.device), float("-inf"))


def mask_audio(logits: Tensor, delay_state: DelayState, min_frames: int, eos_codebooks: int | None = None) -> Tensor:
    """[K, V + 2] logits with -inf for stream bos, which only the delay_state writes, and for an eos that must not be.

    That is one before `min_frames`, and one of a codebook from number `eos_codebooks` on.
    """
    logits = logits.float().clone()
    logits[:, delay_state.bos] = float("-inf")
    frames = (
        delay_state.columns - 1 - torch.arange(delay_state.num_codebooks, device=logits.device)
    )  # [K] frame of each row's cell
    logits[frames < min_frames, delay_state.eos] = float("-inf")
    if eos_codebooks is not None:
        logits[eos_codebooks:, delay_state.eos] = float("-inf")
    return logits


def _sample_column(state: RowState, logits: Tensor, rules: Rules) -> Sequence[int]:
    """[K, V + 2] logits -> K ids. In the column after frame `max_frames`, codebook 0 becomes eos."""
    assert state.delay_state is not None
    delay_state = state.delay_state
    logits = mask_audio(logits, delay_state, rules.min_frames, rules.sampling.eos_codebooks)
    drawing, again = step_noise(state, 2 * delay_state.num_codebooks, logits.device).chunk(2)  # [K] each
    ids = sample(logits, rules.sampling, drawing)  # [K]
    if state.recent:
        window = torch.tensor(state.recent, device=ids.device).T  # [K, W]
        window = window.masked_fill(window >= delay_state.bos, -1)  # markers are no repetition
        ids = repetition_aware(ids, logits, window, rules.sampling, again)
    sampled: list[int] = ids.tolist()
    if rules.max_frames is not None and delay_state.end is None and delay_state.columns == rules.max_frames + 1:
        sampled[0] = delay_state.eos
    return sampled


def _finish_reason(state: RowState, rules: Rules) -> str | None:
    """Why the row ends with this step; `state` still holds the segment that <|audio_eos|> has just closed."""
    closes = state.delay_state is not None and state.token == rules.config.audio_eos_token_id
    if closes and rules.max_frames is not None and state.delay_state.frames == rules.max_frames:  # type: ignore[union-attr]
        return "length"
    if state.token in rules.eos_token_ids:
        return "stop"
    if state.text and any(stop in rules.tokenizer.decode(list(state.text)) for stop in rules.stop_strings):
        return "stop"
    return "length" if state.steps >= state.limit else None


# The batch.


def generate(
    model: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    audio_input_ids: Tensor | None = None,
    audio_input_ids_mask: Tensor | None = None,
    input_features: Tensor | None = None,
    feature_attention_mask: Tensor | None = None,
    feature_positions: Tensor | None = None,
    **options: Any,
) -> GenerateOutput:
    """Text and sound that follow each prompt of a batch.

    A row of a batch is what the row would be alone with its seed. Rows may have audio or not, and may be in text and
    in audio at the same time.

    Args:
        model: the language model.
        input_ids: [B, T] token ids, shorter prompts padded on the left, one placeholder for each column. A prompt
            that ends in <|audio_out_bos|> is answered with sound; one that ends in a placeholder has its segment
            continued.
        attention_mask: [B, T], 0 on the padding; no padding when None.
        audio_input_ids: [B, F, K] delayed columns of the prompts, rows padded on the right.
        audio_input_ids_mask: [B, F] bool, False on that padding; no padding when None.
        input_features, feature_attention_mask, feature_positions: what the audio tower hears; see
            `HiggsAudioModel.forward`.
        **options: by keyword,

            do_sample, temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, text_guidance_scale,
                eos_codebooks: see `SamplingOptions`. Left out, they come from `model.generation_config`, then from the
                defaults of `SamplingOptions`. With do_sample=False, repetition-aware sampling is off unless
                `ras_win_len` is given.
            negative_prompt_ids: [B, T], the prompts that guidance compares with; input_ids with the last user text
                hidden when left out, which needs `tokenizer`. Without either, a text_guidance_scale of the
                checkpoint's own is passed over.
            max_new_tokens: most steps of a row; a step is one text token or one column. F frames of sound cost
                F + K + 1 columns, then <|audio_eos|> and an end token. 1024 when no limit is given.
            max_length: the same limit with the row's prompt (its placeholders too, its padding not) counted in. With
                both given, the nearer one holds.
            min_frames, max_frames: of each segment. A segment that reaches max_frames is closed there, and ends the
                row with "length".
            eos_token_id: an id or several that end a row; `config.eos_token_id` when left out.
            stop_strings: a string or several that end a row once its new text holds one; needs `tokenizer`.
            tokenizer: reads the new text for stop_strings.
            seed: one int, row b then draws from seed + b; or a list of B ints; None takes B seeds from torch's
                global generator.
            labels, audio_labels and their older spellings are ignored, so that a training batch can be passed whole.

    Returns:
        GenerateOutput(sequences [B, T'], audio_sequences, finish_reasons).

    Raises:
        OptionError: an unknown option, or a value outside its range.
        PromptError: inputs whose shapes, padding or placeholders do not fit.
        CodesError: columns that do not fit.
        NumericsError: the model gave NaN.
    """
    inputs = _check_inputs(model.config, input_ids, attention_mask, audio_input_ids, audio_input_ids_mask)
    heard = (input_features, feature_attention_mask, feature_positions)
    rows = [(row.tolist(), [list(inputs.open_segment(b))]) for b, row in enumerate(input_ids)]
    reasons = [""] * len(rows)
    for steps in stream(model, input_ids, attention_mask, audio_input_ids, audio_input_ids_mask, *heard, **options):
        for step in steps:
            tokens, segments = rows[step.row]
            tokens.append(step.token)
            if step.column is not None:
                if step.column_index == 0:
                    segments.append([])
                segments[-1].append(step.column)
            reasons[step.row] = step.finish_reason or reasons[step.row]
    length = max(len(tokens) for tokens, _ in rows)
    padded = [tokens + [inputs.pad] * (length - len(tokens)) for tokens, _ in rows]
    sequences = torch.tensor(padded, device=input_ids.device)  # [B, T']
    audio = [[torch.tensor(s, device=input_ids.device).T for s in segments if s] for _, segments in rows]
    return GenerateOutput(sequences, audio, reasons)


def stream(
    model: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    audio_input_ids: Tensor | None = None,
    audio_input_ids_mask: Tensor | None = None,
    input_features: Tensor | None = None,
    feature_attention_mask: Tensor | None = None,
    feature_positions: Tensor | None = None,
    **options: Any,
) -> Iterator[tuple[Step, ...]]:
    """`generate`, step by step: one tuple per forward, with one `Step` for every row that has not finished.

    Arguments and errors are those of `generate`; options and shapes are checked before the first step is asked for.
    Closing the iterator ends the work. Frames come out of the columns through one `FrameAligner` per segment.
    """
    inputs = _check_inputs(model.config, input_ids, attention_mask, audio_input_ids, audio_input_ids_mask)
    rules = read_rules(model.config, getattr(model, "generation_config", None), options)
    limits = read_limits(options, inputs.attention_mask.sum(dim=1).tolist())
    seeds = read_seeds(options.get("seed"), len(inputs.input_ids))
    states = [_start(inputs, row, limit, rules, seeds[row]) for row, limit in enumerate(limits)]
    _check_heard(model.config, input_features, feature_positions)
    heard = {
        "input_features": input_features,
        "feature_attention_mask": feature_attention_mask,
        "feature_positions": feature_positions,
    }
    unread = negative_prompts(input_ids, rules.sampling.text_guidance_scale, options)
    if unread is not None:
        check_ids(unread, model.config)
    return _walk(model, inputs, heard, rules, states, unread)


@dataclass(frozen=True)
class _Inputs:
    """The checked tensors of a batch, nothing left out: without audio, F is 0."""

    input_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, T]
    audio: Tensor  # [B, F, K]
    audio_mask: Tensor  # [B, F] bool
    config: HiggsAudioConfig = field(repr=False)

    @property
    def pad(self) -> int:
        """The id of padding; its positions change nothing, so any id does where the config names none."""
        return self.config.pad_token_id or 0

    def open_segment(self, row: int) -> Sequence[Column]:
        """[n] columns of the segment in which the row's prompt stops, from its bos column on; empty where it doesn't.

        Raises:
            CodesError: the row ends inside a segment, but none of its columns is a bos column.
        """
        generated = (self.config.audio_out_token_idx, self.config.audio_delay_token_id)
        if int(self.input_ids[row, -1]) not in generated:
            return []
        columns = [tuple(column) for column in self.audio[row][self.audio_mask[row]].tolist()]
        bos = (self.config.audio_stream_bos_id,) * self.config.audio_num_codebooks
        if bos not in columns:
            raise CodesError(f"row {row} ends inside a segment, but audio_input_ids holds no bos column for it")
        start = len(columns) - 1 - columns[::-1].index(bos)
        return columns[start:]


def _walk(
    model: LanguageModel,
    inputs: _Inputs,
    heard: Mapping[str, Tensor | None],
    rules: Rules,
    states: list[RowState],
    unread: Tensor | None,
) -> Iterator[tuple[Step, ...]]:
    """The loop itself; `heard` is for the first forward alone. With `unread` every forward is of the batch twice."""
    mask = inputs.attention_mask
    feed = {"input_ids": inputs.input_ids, **{name: value for name, value in heard.items() if value is not None}}
    if inputs.audio.shape[1]:
        feed |= {"audio_input_ids": inputs.audio, "audio_input_ids_mask": inputs.audio_mask}
    feed, cache, end = {**feed, "attention_mask": mask}, None, model.config.audio_stream_eos_id
    while True:
        if unread is not None:
            feed = duplicate_batch(feed, unread if cache is None else None)
        with torch.no_grad():
            output = model(**feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.cache
        logits = (
            output.logits if unread is None else apply_guidance(output.logits, rules.sampling.text_guidance_scale, end)
        )
        steps = []
        for row, state in enumerate(states):
            if state.finish_reason is None:
                text = None if output.text_logits is None else output.text_logits[row, -1]  # [V_text]
                states[row], step = _take_step(row, state, (text, logits[row, -1]), rules)
                steps.append(step)
        yield tuple(steps)
        if all(state.finish_reason for state in states):
            return
        mask = torch.cat([mask, mask.new_ones(len(states), 1)], dim=1)
        feed = _next_feed([step for step in steps if step.finish_reason is None], inputs) | {"attention_mask": mask}


def _take_step(row: int, state: RowState, logits: tuple[Tensor | None, Tensor], rules: Rules) -> tuple[RowState, Step]:
    index = state.delay_state.columns if state.delay_state else 0
    token, sampled = next_step(state, *logits, rules)
    state, column = advance(state, token, sampled, rules)
    return state, Step(row, token, column, None if column is None else index, state.finish_reason)


def _next_feed(steps: Sequence[Step], inputs: _Inputs) -> dict[str, Any]:
    """One position for every row: the new token or column of a live row, padding for a finished one.

    Where every live row is in audio, the position is given by its column alone, and no text can follow it. Otherwise a
    row in audio gives placeholder and column, a row in text its token.
    """
    config, device = inputs.config, inputs.input_ids.device
    num_rows = len(inputs.input_ids)
    tokens = torch.full((num_rows, 1), inputs.pad, device=device)  # [B, 1]
    columns = torch.full((num_rows, 1, config.audio_num_codebooks), config.audio_stream_eos_id, device=device)
    in_audio = torch.zeros(num_rows, 1, dtype=torch.bool, device=device)
    for step in steps:
        tokens[step.row] = step.token
        if step.column is not None:
            columns[step.row, 0] = torch.tensor(step.column, device=device)
            in_audio[step.row] = True
    if all(step.column is not None for step in steps):
        return {"audio_input_ids": columns, "with_text": False}
    if not in_audio.any():
        return {"input_ids": tokens}
    return {"input_ids": tokens, "audio_input_ids": columns, "audio_input_ids_mask": in_audio}


def _start(inputs: _Inputs, row: int, limit: int, rules: Rules, seed: int) -> RowState:
    """The row at the end of its prompt, inside a segment where the prompt stops in one."""
    columns = inputs.open_segment(row)
    delay_state = rules.new_delay_state().resume(columns) if columns else None
    window = rules.sampling.ras_win_len or 0
    recent = tuple(columns[-window:]) if window else ()
    return RowState(
        token=int(inputs.input_ids[row, -1]), limit=limit, seed=seed, delay_state=delay_state, recent=recent
    )


# The border.


def _check_inputs(
    config: HiggsAudioConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    audio_input_ids: Tensor | None,
    audio_input_ids_mask: Tensor | None,
) -> _Inputs:
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or 0 in input_ids.shape:
        shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise PromptError(f"input_ids is {shape}; it must be a tensor [B, T] with at least one token a row")
    check_ids(input_ids, config)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape or not bool(attention_mask[:, -1].all()):
        raise PromptError(
            f"attention_mask {tuple(attention_mask.shape)} does not fit input_ids {tuple(input_ids.shape)}, or pads on "
            "the right; shorter prompts are padded on the left"
        )
    shape = (len(input_ids), 0, config.audio_num_codebooks)
    audio = input_ids.new_zeros(shape) if audio_input_ids is None else audio_input_ids
    if audio.dim() != 3 or audio.shape[::2] != shape[::2]:
        raise CodesError(f"audio_input_ids is {tuple(audio.shape)}; it must be [B, F, K] with B, K = {shape[::2]}")
    whole = torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
    audio_mask = whole if audio_input_ids_mask is None else audio_input_ids_mask.bool()
    if audio_mask.shape != audio.shape[:2]:
        raise CodesError(f"audio_input_ids_mask is {tuple(audio_mask.shape)}; it must be {tuple(audio.shape[:2])}")
    return _Inputs(input_ids, attention_mask, audio, audio_mask, config)


def _check_heard(config: HiggsAudioConfig, features: Tensor | None, places: Tensor | None) -> None:
    """Raises PromptError where there is something to hear and no audio tower, or nothing for the positions to take."""
    if features is not None and config.skip_audio_tower:
        raise PromptError("input_features for a model without audio tower (skip_audio_tower=True); give codes")
    if (features is None) != (places is None or not bool(places.any())):
        raise PromptError("input_features and feature_positions belong together; pass all that the processor returns")
