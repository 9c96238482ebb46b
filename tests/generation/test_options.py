"""Tests that types, dataclass, documentation and checks of the options of `generate` agree."""

import inspect
import re
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch
from oracle import AUDIO_OUT_BOS, BEGIN, PAD, fill, make_config

from higgs_audio import HiggsAudioForConditionalGeneration
from higgs_audio.errors import OptionError
from higgs_audio.generation import loop
from higgs_audio.generation.options import GenerateOptions
from higgs_audio.generation.rules import Rules
from higgs_audio.generation.sampling import SamplingKwargs, SamplingOptions

PROMPT = torch.tensor([[BEGIN, 20, AUDIO_OUT_BOS]])


class WordTokenizer:
    """A minimal tokenizer for `stop_strings`."""

    def decode(self, ids):
        return " ".join(map(str, ids))


# A value that is not the default, for each option.
VALUES = {
    "do_sample": False,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "ras_win_len": 4,
    "ras_win_max_num_repeat": 1,
    "text_guidance_scale": 2.0,
    "eos_codebooks": 1,
    "negative_prompt_ids": torch.tensor([[BEGIN, PAD, AUDIO_OUT_BOS]]),
    "max_new_tokens": 2,
    "max_length": 5,
    "min_frames": 1,
    "max_frames": 2,
    "eos_token_id": None,
    "stop_strings": "word",
    "tokenizer": WordTokenizer(),
    "seed": 3,
}
REQUIRED = {
    "text_guidance_scale": ("negative_prompt_ids",),
    "stop_strings": ("tokenizer",),
}


@pytest.fixture(scope="module")
def model():
    return fill(HiggsAudioForConditionalGeneration(make_config()), seed=0)


def documented(text):
    """Returns the option names at the beginning of the entries ("name: ..." or "first, second: ...") of a docstring."""
    entries = re.findall(r"^ +(\w+(?:, \w+)*): ", text, flags=re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


def test_keyword_arguments_have_the_names_and_types_of_the_dataclass():
    assert get_type_hints(SamplingKwargs) == get_type_hints(SamplingOptions)


def test_every_option_is_documented_once():
    sampling, others = documented(SamplingOptions.__doc__), documented(GenerateOptions.__doc__)
    assert sampling == {field.name for field in fields(SamplingOptions)}
    assert sampling | others == set(get_type_hints(GenerateOptions))
    assert not sampling & others


def test_the_defaults_are_those_published_with_the_3b_checkpoint():
    assert SamplingOptions() == SamplingOptions(
        do_sample=True,
        temperature=1.0,
        top_k=50,
        top_p=0.95,
        ras_win_len=7,
        ras_win_max_num_repeat=2,
        text_guidance_scale=1.0,
        eos_codebooks=None,
    )


def test_this_file_has_a_value_for_every_option():
    assert set(VALUES) == set(get_type_hints(GenerateOptions))


@pytest.mark.parametrize("name", VALUES)
def test_every_declared_option_is_accepted(model, name):
    options = {other: VALUES[other] for other in (name, *REQUIRED.get(name, ()))}
    assert next(loop.stream(model, PROMPT, **options))


@pytest.mark.parametrize("name", VALUES)
def test_a_misspelled_option_is_an_error_that_names_the_nearest_one(model, name):
    misspelled = name[:-2] + name[-1]
    with pytest.raises(OptionError, match=rf"no option '{misspelled}'; did you mean '{name}'"):
        model.generate(PROMPT, **{misspelled: VALUES[name]})


def test_an_option_unlike_any_other_is_an_error_that_lists_all(model):
    with pytest.raises(OptionError, match=r"no option 'xyzzy'; allowed: do_sample, eos_codebooks, .*, top_p$"):
        model.generate(PROMPT, xyzzy=1)


def test_rules_contain_every_option_that_is_not_read_before_the_first_step():
    read_before = {"negative_prompt_ids", "max_new_tokens", "max_length", "seed"}
    kept = {field.name for field in fields(Rules)} - {"config", "sampling"}
    sampling = set(get_type_hints(SamplingOptions))
    renamed = {"eos_token_ids": "eos_token_id"}
    assert {renamed.get(name, name) for name in kept} == set(VALUES) - sampling - read_before


@pytest.mark.parametrize("function", [loop.stream, HiggsAudioForConditionalGeneration.generate])
def test_functions_that_generate_have_the_same_typed_parameters(function):
    wanted, given = (list(inspect.signature(each).parameters.values())[1:] for each in (loop.generate, function))
    assert given == wanted
    assert get_type_hints(function)["options"].__args__ == (GenerateOptions,)


def test_generate_and_from_pretrained_return_their_annotated_types():
    hints = get_type_hints(HiggsAudioForConditionalGeneration.generate)
    assert hints["return"] is get_type_hints(loop.generate)["return"]
    assert "Self" in str(get_type_hints(HiggsAudioForConditionalGeneration.from_pretrained)["return"])
