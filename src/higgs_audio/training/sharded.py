"""A language-model run's state in shards: every process writes its own, any number of processes reads them."""

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

from higgs_audio.errors import CheckpointError, RecipeError
from higgs_audio.training.parallel import World
from higgs_audio.training.run import check_same

FOLDER, PART, OLD = "state", "state.part", "state.old"


class ShardedState:
    """Parameters, optimizer, the number of steps done and the place in the data behind them, in `folder/state`.

    Only what is trained is kept: frozen parameters come from where the run started.
    """

    def __init__(self, folder: Path, module: nn.Module, optimizer: optim.Optimizer, world: World) -> None:
        self._folder, self._module, self._optimizer, self._world = folder, module, optimizer, world
        self._options = StateDictOptions(ignore_frozen_params=True)

    def save(self, step: int, place: tuple[int, int]) -> None:
        """Writes beside the last state and takes its place when all processes are done.

        Raises CheckpointError where it cannot be written, as on a full disk; the last state is whole then.
        """
        part, old, last = (self._folder / name for name in (PART, OLD, FOLDER))
        if self._world.is_first:
            shutil.rmtree(part, ignore_errors=True)
        self._world.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process alone is alone
            try:
                save(self._state() | {"step": step, "place": place}, checkpoint_id=part, no_dist=self._world.size == 1)
            except (CheckpointException, OSError, RuntimeError) as error:
                shutil.rmtree(part, ignore_errors=True)
                raise CheckpointError(
                    f"step {step} cannot be saved in {str(self._folder)!r}: {_reason(error)}. What was saved before is "
                    "whole: make room and start the run again"
                ) from error
        self._world.wait()
        if self._world.is_first:
            shutil.rmtree(old, ignore_errors=True)
            if last.exists():
                os.replace(last, old)
            os.replace(part, last)
            shutil.rmtree(old, ignore_errors=True)
        self._world.wait()

    def resume(self) -> tuple[int, tuple[int, int] | None]:
        """Loads the last state, where there is one; returns the number of steps done and the place behind them.

        States written before there were places have none; it must be looked for then.

        Raises RecipeError where the folder holds the state of another model, naming what differs, or a damaged one.
        """
        found = [self._folder / name for name in (FOLDER, OLD) if (self._folder / name / ".metadata").exists()]
        if not found:
            return 0, None
        entries = _entries(found[0])
        known = {"place": (0, 0)} if any(name.startswith("place") for name in entries) else {}
        state = self._state() | {"step": 0} | known
        check_same(found[0], _sizes(entries), {n: str(list(w.shape)) for n, w in state["model"].items()})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(state, checkpoint_id=found[0], no_dist=self._world.size == 1)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise _damaged(found[0], error) from error
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
    """What a state holds, read without its values."""
    try:
        return FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling raises
        raise _damaged(path, error) from error


def _sizes(entries: Mapping[str, Any]) -> dict[str, str]:
    """Shape of every parameter among the entries of a state."""
    prefix = "model."
    sizes = {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return {name.removeprefix(prefix): str(list(size)) for name, size in sizes.items() if name.startswith(prefix)}


def _damaged(path: Path, error: BaseException) -> RecipeError:
    return RecipeError(f"{str(path)!r} cannot be read: {_reason(error)}. Choose another output, or remove it")


def _reason(error: BaseException) -> str:
    """One line of what went wrong; torch wraps one error of each process."""
    inner = [failure[0] for failure in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    return next(iter(str(inner[0]).splitlines()), type(inner[0]).__name__)
