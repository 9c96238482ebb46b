"""Tests of the partition of a batch, and of the device of a process."""

import itertools

import pytest
import torch

from higgs_audio.errors import OptionError
from higgs_audio.training.parallel import init_distributed, partition


def test_partitions_contain_every_item_once_and_are_about_equal():
    sizes = [5, 1, 9, 4, 4, 2, 7]
    for count in (1, 2, 3, 10):
        chosen = partition(sizes, count)
        assert sorted(itertools.chain(*chosen)) == list(range(7))
        assert len(chosen) == count
    halves = [sum(sizes[n] for n in numbers) for numbers in partition(sizes, 2)]
    assert max(halves) - min(halves) <= 2


def test_a_missing_device_is_an_option_error():
    for device in ("tpu", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(OptionError, match="train on"):
            init_distributed(device)
