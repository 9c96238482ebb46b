"""A small model with random weights, which tests store in each layout."""

import pytest
from stored_layouts import make_model

from higgs_audio import HiggsAudioForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> HiggsAudioForConditionalGeneration:
    return make_model()
