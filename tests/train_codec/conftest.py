"""The corpus of the training runs."""

import pytest
from runs import write_timed_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_timed_corpus(tmp_path_factory.mktemp("corpus"))
