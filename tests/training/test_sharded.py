"""Tests of the sharded state of a run."""

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from higgs_audio.training.parallel import World
from higgs_audio.training.sharded import ShardedState


def stepped():
    """Returns a layer and an optimizer after one step."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


def resumed(folder):
    layer = torch.nn.Linear(2, 2)
    return layer, ShardedState(folder, layer, torch.optim.AdamW(layer.parameters()), World()).resume()


def test_a_state_is_resumed_with_its_position_in_the_data(tmp_path):
    layer, optimizer = stepped()
    ShardedState(tmp_path, layer, optimizer, World()).save(7, (3, 2))
    other, found = resumed(tmp_path)
    assert found == (7, (3, 2))
    assert torch.equal(other.weight, layer.weight)


def test_a_state_of_an_earlier_version_has_no_position(tmp_path, recwarn):
    """Earlier, such states were reported as damaged."""
    layer, optimizer = stepped()
    model, state = get_state_dict(layer, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    save({"model": model, "optimizer": state, "step": 7}, checkpoint_id=tmp_path / "state", no_dist=True)
    recwarn.clear()
    other, found = resumed(tmp_path)
    assert found == (7, None)
    assert torch.equal(other.weight, layer.weight)


def test_an_interrupted_save_falls_back_to_the_state_before(tmp_path):
    """A kill between the two renames of `save` leaves `state.old` but no `state`."""
    layer, optimizer = stepped()
    ShardedState(tmp_path, layer, optimizer, World()).save(7, (3, 2))
    (tmp_path / "state").rename(tmp_path / "state.old")
    other, found = resumed(tmp_path)
    assert found == (7, (3, 2))
    assert torch.equal(other.weight, layer.weight)
