"""Corpora, and one of them encoded."""

import dataclasses
from shutil import copytree

import pytest
from corpus import TEXTS, write_corpus
from runs import write_timed_corpus

from higgs_audio.data import prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_timed_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def annotated_corpus(tmp_path_factory):
    """Six clips; one has a scene, and one names the clip that is its reference."""
    more = {1: {"scene": "A large hall."}, 2: {"reference": "clip-0"}}
    entries = [(f"clip-{n}", {"text": text, **more.get(n, {})}) for n, text in enumerate(TEXTS)]
    return write_corpus(tmp_path_factory.mktemp("annotated"), entries)


@pytest.fixture(scope="session")
def recipe(annotated_corpus, tiny_checkpoint):
    """Codes without alignment, two clips per part."""
    tokenizer = str(tiny_checkpoint / "codec")
    return prepare.PrepareRecipe(str(annotated_corpus), tokenizer, "", "", clips_per_part=2)


@pytest.fixture(scope="session")
def encoded(recipe, tmp_path_factory):
    """The output folder of one process."""
    output = tmp_path_factory.mktemp("encoded")
    assert prepare.prepare(dataclasses.replace(recipe, output=str(output))) == {"kept": len(TEXTS)}
    return output


@pytest.fixture
def copy(encoded, tmp_path):
    """A copy of the output folder, for changes."""
    return copytree(encoded, tmp_path / "copy")
