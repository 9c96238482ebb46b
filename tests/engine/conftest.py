"""Requests for the engine, and their expected results: the results of the plain loop, which runs each request alone."""

import pytest
from engines import many_requests, run_alone
from oracle import fill, make_config

from higgs_audio.model.model import HiggsAudioForConditionalGeneration


@pytest.fixture(scope="session")
def model():
    return fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()


@pytest.fixture
def own_model():
    """A copy of `model` that a test may modify."""
    return fill(HiggsAudioForConditionalGeneration(make_config()), seed=0).eval()


@pytest.fixture(scope="session")
def requests():
    return many_requests()


@pytest.fixture(scope="session")
def expected(model, requests):
    """Columns and finish reason of each request."""
    return [run_alone(model, request) for request in requests]


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setenv("HIGGS_AUDIO_NATIVE", "0")
