"""The reference generation loop: one forward pass, one token or column per row, repeated. It is simple and slow; every
faster path must agree with it.

`row_state.py` chooses the next token of one row. `stream` runs it over a batch, and `generate` concatenates the stream.
Every token of the result has been an input of the model at its position, so running the model over the result as a
prompt leads to the same choices: after the last column of a segment there is one forward pass of that column (as in
training), then one of <|audio_eos|>.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache
from typing_extensions import Unpack

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.generation.checks import check_ids
from higgs_audio.generation.guidance import apply_guidance, duplicate_batch, negative_prompts
from higgs_audio.generation.inputs import Inputs, check_inputs
from higgs_audio.generation.options import GenerateOptions
from higgs_audio.generation.output import GenerateOutput, Step, concatenate
from higgs_audio.generation.row_state import RowState, start_row, take_step
from higgs_audio.generation.rules import Rules, read_limits, read_rules, read_seeds


class ForwardOutput(Protocol):
    """The fields of a model output that the loop reads: logits `[B, T, K, V + 2]`, text logits `[B, T, V_text]` and the
    cache."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def text_logits(self) -> Tensor | None: ...
    @property
    def cache(self) -> Cache: ...


class LanguageModel(Protocol):
    """The interface of a model that the loop uses: config and forward pass. `generation_config` is optional."""

    @property
    def config(self) -> HiggsAudioConfig: ...

    def __call__(self, *args: Any, **kwargs: Any) -> ForwardOutput: ...


def generate(
    model: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    audio_input_ids: Tensor | None = None,
    audio_input_ids_mask: Tensor | None = None,
    input_features: Tensor | None = None,
    feature_attention_mask: Tensor | None = None,
    feature_positions: Tensor | None = None,
    **options: Unpack[GenerateOptions],
) -> GenerateOutput:
    """Generates the text and audio that follow each prompt of a batch.

    Each row of a batch has the same result as it would have alone with its seed. Some rows may have audio and others
    not, and some may be in text while others are in audio.

    Args:
        model: the language model.
        input_ids: `[B, T]` token ids, shorter prompts padded on the left, one placeholder for each column. A prompt
            that ends in <|audio_out_bos|> is continued with audio; a prompt that ends in a placeholder continues its
            segment.
        attention_mask: `[B, T]`, 0 for padding; no padding when None.
        audio_input_ids: `[B, F, K]` delayed columns of the prompts, rows padded on the right.
        audio_input_ids_mask: `[B, F]` bool, False for padding; no padding when None.
        input_features, feature_attention_mask, feature_positions: inputs of the audio tower; see
            `HiggsAudioModel.forward`.
        **options: see `GenerateOptions`. labels, audio_labels and their older spellings are ignored, so that a training
            batch can be passed unchanged.

    Returns:
        GenerateOutput(sequences `[B, T']`, audio_sequences, finish_reasons).

    Raises:
        OptionError: an unknown option, or a value outside its range.
        PromptError: inputs of the wrong shape, padding or placeholders.
        CodesError: columns of the wrong shape, type or range.
        NumericsError: the model returned NaN or infinity.
    """
    features = _named(input_features, feature_attention_mask, feature_positions)
    inputs = check_inputs(model.config, input_ids, attention_mask, audio_input_ids, audio_input_ids_mask, features)
    segments = [inputs.open_segment(row) for row in range(len(input_ids))]
    return concatenate(_start(model, inputs, options), inputs.input_ids, segments, inputs.pad_token_id)


def stream(
    model: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    audio_input_ids: Tensor | None = None,
    audio_input_ids_mask: Tensor | None = None,
    input_features: Tensor | None = None,
    feature_attention_mask: Tensor | None = None,
    feature_positions: Tensor | None = None,
    **options: Unpack[GenerateOptions],
) -> Iterator[tuple[Step, ...]]:
    """Yields the steps of `generate`: one tuple per forward pass, with one `Step` for every row that has not finished.

    Arguments and errors are the same as for `generate`; options and shapes are checked before this function returns.
    Closing the iterator stops the generation. A `FrameAligner` per segment converts the columns to frames.
    """
    features = _named(input_features, feature_attention_mask, feature_positions)
    inputs = check_inputs(model.config, input_ids, attention_mask, audio_input_ids, audio_input_ids_mask, features)
    return _start(model, inputs, options)


def _named(features: Tensor | None, mask: Tensor | None, positions: Tensor | None) -> dict[str, Tensor | None]:
    return {"input_features": features, "feature_attention_mask": mask, "feature_positions": positions}


def _start(model: LanguageModel, inputs: Inputs, options: Mapping[str, Any]) -> Iterator[tuple[Step, ...]]:
    """Checks the options and returns the iterator over the steps."""
    rules = read_rules(model.config, getattr(model, "generation_config", None), options)
    limits = read_limits(options, inputs.attention_mask.sum(dim=1).tolist())
    seeds = read_seeds(options.get("seed"), len(inputs.input_ids))
    states = [start_row(inputs, row, limit, seeds[row], rules) for row, limit in enumerate(limits)]
    negative_ids = negative_prompts(inputs.input_ids, rules.sampling.text_guidance_scale, options)
    if negative_ids is not None:
        check_ids(negative_ids, model.config)
    return _run_steps(model, inputs, rules, states, negative_ids)


def _run_steps(
    model: LanguageModel, inputs: Inputs, rules: Rules, states: list[RowState], negative_ids: Tensor | None
) -> Iterator[tuple[Step, ...]]:
    """Runs the loop. With `negative_ids` every forward pass runs the batch twice, conditional and unconditional."""
    mask, cache, with_text = inputs.attention_mask, None, True
    batch = inputs.prompt_inputs()
    while True:
        if negative_ids is not None:
            batch = duplicate_batch(batch, negative_ids if cache is None else None)
        with torch.no_grad():
            output = model(**batch, past_key_values=cache, use_cache=True, logits_to_keep=1, with_text=with_text)
        cache, logits = output.cache, output.logits
        if negative_ids is not None:
            logits = apply_guidance(logits, rules.sampling.text_guidance_scale, model.config.audio_stream_eos_id)
        steps = []
        for row, state in enumerate(states):
            if state.finish_reason is None:
                text = None if output.text_logits is None else output.text_logits[row, -1]  # [V_text]
                states[row], step = take_step(row, state, text, logits[row, -1], rules)
                steps.append(step)
        yield tuple(steps)
        if all(state.finish_reason for state in states):
            return
        mask = torch.cat([mask, mask.new_ones(len(states), 1)], dim=1)
        batch = inputs.step_inputs([step for step in steps if step.finish_reason is None]) | {"attention_mask": mask}
        with_text = "input_ids" in batch
