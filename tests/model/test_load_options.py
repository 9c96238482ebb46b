"""Tests that the typed options of `from_pretrained` are those that it accepts."""

from typing import get_type_hints

import pytest

from higgs_audio import NANO, HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.checkpoint import FOLDER_OPTIONS, FolderOptions
from higgs_audio.errors import OptionError
from higgs_audio.model.load_options import ConfigFields, LoadOptions, config_overrides


def test_every_typed_option_is_accepted():
    options = dict.fromkeys(set(get_type_hints(LoadOptions)) - {"state_dict"})
    assert set(config_overrides(options)) == set(get_type_hints(ConfigFields))


def test_options_that_select_the_folder_are_typed():
    assert set(get_type_hints(FolderOptions)) == set(FOLDER_OPTIONS)


def test_fields_of_the_config_have_their_types():
    assert get_type_hints(ConfigFields) == HiggsAudioConfig.__annotations__


def test_from_pretrained_is_typed_by_these_options():
    assert get_type_hints(HiggsAudioForConditionalGeneration.from_pretrained)["options"].__args__ == (LoadOptions,)


@pytest.mark.parametrize(
    ("misspelled", "meant"), [("dtpe", "dtype"), ("revison", "revision"), ("attn_implementaton", "attn_implementation")]
)
def test_a_misspelled_option_is_an_error_that_names_the_nearest_one(misspelled, meant):
    with pytest.raises(OptionError, match=f"no option '{misspelled}'; did you mean '{meant}'"):
        HiggsAudioForConditionalGeneration.from_pretrained(NANO, **{misspelled: None})


def test_options_are_passed_by_keyword():
    with pytest.raises(OptionError, match="takes options by keyword; 'main' was passed without one"):
        HiggsAudioForConditionalGeneration.from_pretrained(NANO, "main")
