"""A language-model run's state in shards: every process writes its own, any number of processes reads them."""

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from torch import nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from higgs_audio.errors import RecipeError
from higgs_audio.train.parallel import World

FOLDER, PART, OLD = "state", "state.part", "state.old"


class ShardedState:
    """Parameters, optimizer and the number of steps done, in `folder/state`.

    Only what is trained is kept: frozen parameters come from where the run started.
    """

    def __init__(self, folder: Path, module: nn.Module, optimizer: optim.Optimizer, world: World) -> None:
        self._folder, self._module, self._optimizer, self._world = folder, module, optimizer, world
        self._options = StateDictOptions(ignore_frozen_params=True)

    def save(self, step: int) -> None:
        """Writes beside the last state and takes its place when all processes are done."""
        part, old, last = (self._folder / name for name in (PART, OLD, FOLDER))
        if self._world.is_first:
            shutil.rmtree(part, ignore_errors=True)
        self._world.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process alone is alone
            save(self._state() | {"step": step}, checkpoint_id=part, no_dist=self._world.size == 1)
        self._world.wait()
        if self._world.is_first:
            shutil.rmtree(old, ignore_errors=True)
            if last.exists():
                os.replace(last, old)
            os.replace(part, last)
            shutil.rmtree(old, ignore_errors=True)
        self._world.wait()

    def resume(self) -> int:
        """Loads the last state, where there is one; returns the number of steps done.

        Raises RecipeError where the folder holds the state of another model.
        """
        found = [self._folder / name for name in (FOLDER, OLD) if (self._folder / name / ".metadata").exists()]
        if not found:
            return 0
        state = self._state() | {"step": 0}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(state, checkpoint_id=found[0], no_dist=self._world.size == 1)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise RecipeError(
                f"{found[0]} holds the state of another run, or is damaged: choose another output, or remove it"
            ) from error
        set_state_dict(
            self._module,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )
        if self._world.is_first:
            print(f"resumed {self._folder} at step {state['step']}", file=sys.stderr)
        return int(state["step"])

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._module, self._optimizer, options=self._options)
        return {"model": model, "optimizer": optimizer}
