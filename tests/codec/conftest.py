"""Audio tokenizers with random weights, and folders in which they are stored."""

import shutil
from pathlib import Path

import pytest
from audio_tokenizers import LAYOUTS, write_early
from oracle import make_tokenizer, stand_in_torchaudio

from higgs_audio.codec import HiggsAudioTokenizer, layout


@pytest.fixture(scope="module", params=["dac", "vocos", "harmonic"])
def tokenizer(request):
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def dac_tokenizer():
    return make_tokenizer("dac")


@pytest.fixture(scope="module")
def vocos_tokenizer():
    return make_tokenizer("vocos")


@pytest.fixture(scope="module")
def torchaudio():
    with stand_in_torchaudio():
        yield


@pytest.fixture(scope="module")
def stored(dac_tokenizer, tmp_path_factory):
    """Layout -> a folder with the same tokenizer. Tests must not modify it."""
    root = tmp_path_factory.mktemp("stored")
    for name in LAYOUTS:
        layout.write(HiggsAudioTokenizer, dac_tokenizer.config, dac_tokenizer.state_dict(), root / name, name)
    write_early(root / "transformers", root / "early")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def folder(stored, tmp_path):
    """Returns a function that copies a stored layout to a folder that the test may modify."""

    def copy(name):
        return Path(shutil.copytree(stored[name], tmp_path / name))

    return copy
