"""Tests of the section "fast paths" of `higgs-audio info`."""

import shutil

import pytest
import torch

from higgs_audio import NANO, HiggsAudioForConditionalGeneration
from higgs_audio.checkpoint import open_checkpoint
from higgs_audio.checkpoint.weights import open_weights
from higgs_audio.cli.checkpoints import info
from higgs_audio.cli.fast_paths import fast_paths, packed_bytes
from higgs_audio.native import library

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here")


@pytest.fixture
def states(monkeypatch, tmp_path):
    """Returns a function that returns the fast paths of nano as a new process with an empty cache would see them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def read(**environment):
        library.load_library.cache_clear()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return fast_paths(open_checkpoint("nano"))

    yield read
    library.load_library.cache_clear()


@needs_compiler
def test_info_says_that_the_c_code_was_compiled_and_then_that_it_was_cached(states, tmp_path):
    first, second = states()["C code"], states()["C code"]
    assert first.startswith("on, compiled now by ") and str(tmp_path) in first
    assert second.startswith("on, from the cache: ") and str(tmp_path) in second


def test_info_says_why_the_c_code_does_not_run(states, monkeypatch, tmp_path):
    assert states(HIGGS_AUDIO_NATIVE="0")["C code"] == "off: HIGGS_AUDIO_NATIVE=0; unset it"
    refused = states(HIGGS_AUDIO_NATIVE="1", CC="false")
    assert refused["C code"].startswith("off: the C files cannot be compiled")
    assert refused["language model in C"] == "off: the C code is off"
    monkeypatch.delenv("CC")
    missing = states(PATH=str(tmp_path))
    assert missing["C code"].startswith("off: there is no C compiler (cc, gcc or clang)")
    assert missing["torch.compile"].startswith("off: on a CPU it needs a C++ compiler")


@needs_compiler
def test_info_says_how_many_bytes_the_packed_weights_need(states):
    model = HiggsAudioForConditionalGeneration.from_pretrained(NANO)
    weights = [*model.model.layers.parameters(), model.audio_lm_head.weight]
    size = packed_bytes(open_weights(open_checkpoint("nano")))
    assert size == 2 * sum(weight.numel() for weight in weights)
    assert states()["language model in C"].startswith("on for float32 on a CPU")


def test_info_names_threads_gpu_and_packages(states, capsys, tiny_checkpoint):
    found = states()
    assert found["threads"].split()[3] == str(torch.get_num_threads())
    assert found["GPU"].startswith("on" if torch.cuda.is_available() else "off")
    assert f"accelerate {__import__('accelerate').__version__}" in found["optional packages"]
    info(str(tiny_checkpoint / "codec"))
    out = capsys.readouterr().out
    assert "off: the checkpoint has no language model" in out
    assert all(name in out for name in found)
