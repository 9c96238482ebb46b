"""Fixtures of several test files: a tiny checkpoint and a tiny teacher, both with random weights."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each are ten times slower

import pytest
import torch
from corpus import HUBERT, TEXT
from oracle import nano_tokenizer

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_codec.teacher import new_teacher
from higgs_audio.train_lm.recipe import LanguageModelRecipe
from higgs_audio.train_lm.start import new_model

VOICES = {
    "ava": {"profile": "Ava", "description": "an American woman"},
    "joe": {"profile": "Joe", "description": "an American man"},
}
TINY_BODY = {
    "body": "vocos",
    "hidden_size": 16,
    "encoder_widths": [16, 16],
    "encoder_depths": [1, 1],
    "decoder_widths": [16, 16],
    "decoder_depths": [1, 1],
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights, which generates noise: nano's text tokenizer, two voices."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = nano_tokenizer().build()
    codec = HiggsAudioTokenizer(
        HiggsAudioTokenizerConfig(acoustic_model_config=TINY_BODY, semantic_model_config=HUBERT, codebook_dim=8)
    ).eval()
    for layer in codec.quantizer.modules():  # new codebooks are empty until training fills them
        for name, table in layer.named_buffers(recurse=False):
            if table.is_floating_point() and table.ndim == 2:
                setattr(layer, name, torch.randn(table.shape))
    processor = HiggsAudioProcessor(tokenizer, codec, text_frontend="phonemes")
    recipe = LanguageModelRecipe(data="", heldout="", processor="", output="", text_config=TEXT)
    new_model(recipe, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "voices.json").write_text(json.dumps(VOICES), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher: random weights."""
    folder = tmp_path_factory.mktemp("teacher")
    new_teacher(HUBERT, seed=0).save_pretrained(folder)
    return folder
