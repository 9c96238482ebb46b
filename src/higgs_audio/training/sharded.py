"""Sharded training state of a language model: each process writes its shard; any number of processes can load them."""

import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from higgs_audio.errors import RecipeError
from higgs_audio.training.parallel import World
from higgs_audio.training.run import check_state_sizes, save_error

STATE, PART, OLD = "state", "state.part", "state.old"


class ShardedState:
    """Saves and loads parameters, optimizer, number of finished steps and position in the data, in `folder/state`.

    Frozen parameters are not saved; they come from the checkpoint from which the run started.
    """

    def __init__(self, folder: Path, module: nn.Module, optimizer: optim.Optimizer, world: World) -> None:
        self._folder, self._module, self._optimizer, self._world = folder, module, optimizer, world
        self._options = StateDictOptions(ignore_frozen_params=True)

    def save(self, step: int, place: tuple[int, int]) -> None:
        """Writes a new state and replaces the last one when all processes have finished.

        Args:
            step: number of finished steps.
            place: position in the data.

        Raises:
            CheckpointError: it cannot be written, for example because the disk is full; the last state is kept.
        """
        part, old, last = (self._folder / name for name in (PART, OLD, STATE))
        if self._world.is_first:
            shutil.rmtree(part, ignore_errors=True)
        self._world.barrier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a single process
            try:
                save(self._state() | {"step": step, "place": place}, checkpoint_id=part, no_dist=self._world.size == 1)
            except (CheckpointException, OSError, RuntimeError) as error:
                shutil.rmtree(part, ignore_errors=True)
                raise save_error(step, self._folder, _reason(error)) from error
        self._world.barrier()
        if self._world.is_first:
            shutil.rmtree(old, ignore_errors=True)
            if last.exists():
                os.replace(last, old)
            os.replace(part, last)
            shutil.rmtree(old, ignore_errors=True)
        self._world.barrier()

    def resume(self) -> tuple[int, tuple[int, int] | None]:
        """Loads the last state, if there is one; returns the number of finished steps and the position in the data.

        The position is None for states of earlier versions, which did not save it.

        Raises:
            RecipeError: the state is damaged or belongs to another model; the message names the difference.
        """
        saved = [self._folder / name for name in (STATE, OLD) if (self._folder / name / ".metadata").exists()]
        if not saved:
            return 0, None
        path = saved[0]
        entries = _entries(path)
        place = {"place": (0, 0)} if any(name.startswith("place") for name in entries) else {}
        state = self._state() | {"step": 0} | place
        check_state_sizes(path, _sizes(entries), {n: str(list(w.shape)) for n, w in state["model"].items()})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(state, checkpoint_id=path, no_dist=self._world.size == 1)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise _damaged(path, error) from error
        set_state_dict(
            self._module,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )
        if self._world.is_first:
            print(f"resumed {self._folder} at step {state['step']}", file=sys.stderr)
        return int(state["step"]), state.get("place")

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._module, self._optimizer, options=self._options)
        return {"model": model, "optimizer": optimizer}


def _entries(path: Path) -> Mapping[str, Any]:
    """Reads the metadata of a state's entries, without their values."""
    try:
        return FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # unpickling a damaged file raises anything
        raise _damaged(path, error) from error


def _sizes(entries: Mapping[str, Any]) -> dict[str, str]:
    """Returns the shape of each parameter in a state."""
    prefix = "model."
    sizes = {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return {name.removeprefix(prefix): str(list(size)) for name, size in sizes.items() if name.startswith(prefix)}


def _damaged(path: Path, error: BaseException) -> RecipeError:
    return RecipeError(f"{str(path)!r} cannot be read: {_reason(error)}. Remove it, or give another output folder")


def _reason(error: BaseException) -> str:
    """Returns the first line of an error; torch wraps one error per process."""
    inner = [failure[0] for failure in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    return next(iter(str(inner[0]).splitlines()), type(inner[0]).__name__)
