"""The folder of a training run (resumable state, metrics), and the optimizer step that all training loops share.

The randomness of a step depends on (seed, step) only, see `seed_step`. The saved state therefore consists of the
parameters, the optimizer and the number of finished steps, and a resumed run equals an uninterrupted one bit for bit.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from higgs_audio.errors import CheckpointError, NumericsError, RecipeError
from higgs_audio.files import remove_leftovers, replacing, write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STATE, METRICS = "state.pt", "metrics.jsonl"


class Run:
    """Checkpoints (`state.pt`), metrics (`metrics.jsonl`, tensorboard when installed) and progress of one run.

    Args:
        folder: created if missing; `resume` reads its `state.pt`.
        save_every: steps between checkpoints.
        log_every: steps between metric lines, which contain the means since the previous line.
        quiet: whether to write and print no metrics, because another process of the same run does.
    """

    def __init__(self, folder: str | Path, save_every: int = 200, log_every: int = 20, quiet: bool = False) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save_every, self.log_every, self.quiet = save_every, log_every, quiet
        self._lines: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.monotonic()

    def resume(self, parts: Mapping[str, Any]) -> int:
        """Loads the state dict of each part from the last checkpoint; returns the number of finished steps.

        Raises:
            RecipeError: the checkpoint belongs to another recipe; nothing is loaded.
            CheckpointError: the checkpoint cannot be read.
        """
        path = self.folder / STATE
        remove_leftovers(self.folder, STATE, single_writer=True)
        (self.folder / f"{STATE}.part").unlink(missing_ok=True)  # written by an earlier version
        if not path.exists():
            return self.continue_from(0)  # an attempt that ended before its first checkpoint may have left metrics
        state = _load(path)
        own = {name: part.state_dict() for name, part in parts.items()} | {"step": 0}
        check_state_sizes(path, _sizes(state), _sizes(own))
        for name, part in parts.items():
            part.load_state_dict(state[name])
        print(f"resumed {self.folder} at step {state['step']}", file=sys.stderr)
        return self.continue_from(int(state["step"]))

    def continue_from(self, step: int) -> int:
        """Removes the metrics of steps after `step`, which will be repeated; returns `step`."""
        path = self.folder / METRICS
        if not path.exists():
            return step
        complete = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        self._lines = [line for line in map(json.loads, complete) if line["step"] <= step]
        if not self.quiet:
            remove_leftovers(self.folder, METRICS, single_writer=True)
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self._lines))
        return step

    def is_best(self, name: str) -> bool:
        """Whether the last recorded value of `name` is a new minimum."""
        values = self._values(name)
        return bool(values) and values[-1] < min(values[:-1], default=math.inf)

    def has_plateaued(self, name: str, patience: int) -> bool:
        """Whether none of the last `patience` values of `name` was a new minimum; always False for a patience of 0."""
        values = self._values(name)
        return 0 < patience < len(values) and min(values[-patience:]) >= min(values[:-patience])

    def _values(self, name: str) -> list[float]:
        return [line[name] for line in self._lines if name in line]

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Writes a checkpoint; replaces the last one atomically.

        Raises:
            CheckpointError: it cannot be written, for example because the disk is full.
        """
        state = {name: part.state_dict() for name, part in parts.items()} | {"step": step}
        try:
            with replacing(self.folder / STATE) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
            raise save_error(step, self.folder, str(error).splitlines()[0]) from error

    def should_save(self, step: int, num_steps: int) -> bool:
        """Whether to save a checkpoint after step number `step`, counted from 1."""
        return step % self.save_every == 0 or step == num_steps

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of one step; every `log_every` steps, records their means and the seconds per step."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.log_every:
            return
        means = {name: total / self._count for name, total in self._sums.items()}
        means["step_seconds"] = (time.monotonic() - self._since) / self._count
        self.record(step, means)
        self._sums, self._count, self._since = {}, 0, time.monotonic()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of metrics immediately, to the file, tensorboard and stderr."""
        rounded = {name: round(float(value), 5) for name, value in values.items()}
        self._lines.append({"step": step, **rounded})
        if self.quiet:
            return
        with (self.folder / METRICS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **rounded}) + "\n")
        for name, value in rounded.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        print(f"step {step:6d}  " + "  ".join(f"{n} {v:.4g}" for n, v in rounded.items()), file=sys.stderr, flush=True)

    @cached_property
    def _board(self) -> "SummaryWriter | None":
        """The tensorboard writer, created with the first metric, so that a rejected run leaves no file."""
        return _tensorboard(self.folder)


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}; delete it to train from the start") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{str(path)!r} is not the state of a run; delete it to train from the start")
    return state


def save_error(step: int, folder: Path, reason: str) -> CheckpointError:
    """Returns the error of a checkpoint that cannot be written to `folder`."""
    return CheckpointError(
        f"step {step} cannot be saved in {str(folder)!r}: {reason}. The last checkpoint is complete: free disk space "
        "and start the run again"
    )


def check_state_sizes(path: Path, saved: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raises RecipeError, with one difference, if the sizes in a saved state differ from those of this run."""
    difference = next((f"{n} is {saved[n]} there and {own[n]} here" for n in own if saved.get(n, own[n]) != own[n]), "")
    for names, place in ((saved.keys() - own.keys(), "there"), (own.keys() - saved.keys(), "here")):
        if names:
            difference = f"{min(names)} is only {place}"
    if difference:
        raise RecipeError(
            f"{str(path)!r} is the state of a run of another recipe: {difference}. Give another output folder, or that "
            "recipe"
        )


def _sizes(state: Mapping[str, Any]) -> dict[str, str]:
    """Returns the shape of each tensor in a module's state and the number of parameters of each optimizer group."""
    sizes = dict.fromkeys(state, "a part")
    for name, part in state.items():
        entries = part if isinstance(part, dict) else {}
        groups = enumerate(entries.get("param_groups", ()))
        sizes |= {f"{name} group {number}": f"{len(group['params'])} parameters" for number, group in groups}
        tensors = ((key, value) for key, value in entries.items() if isinstance(value, torch.Tensor))
        sizes |= {f"{name} {key}": str(list(value.shape)) for key, value in tensors}
    return sizes


def _tensorboard(folder: Path) -> "SummaryWriter | None":
    """Returns a SummaryWriter, or None without tensorboard; the JSONL file has the same numbers."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "board"))


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seeds torch for one step and returns a separate generator for its data; both depend on (seed, step) only."""
    step_seed = seed * 1_000_003 + step
    torch.manual_seed(step_seed)
    return torch.Generator().manual_seed(step_seed + 0x5EED_0000)  # a CPU generator uses 32 bits of its seed


def learning_rate(step: int, num_steps: int, peak: float, warmup: int, final: float) -> float:
    """Returns the learning rate of a step: linear warm-up to `peak`, then cosine decay to `final` at `num_steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def apply_gradients(
    loss: torch.Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, rate: float, max_norm: float
) -> float:
    """Runs the backward pass and `apply_step`; returns the gradient norm.

    Raises:
        NumericsError: as for `apply_step`.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return apply_step(float(loss.detach()), module, optimizer, rate, max_norm)


def apply_step(loss: float, module: nn.Module, optimizer: torch.optim.Optimizer, rate: float, max_norm: float) -> float:
    """Clips the gradients of `module` and steps the optimizer; returns the gradient norm before clipping.

    Raises:
        NumericsError: the loss or the norm is not finite; no parameter has changed.
    """
    total: Any = nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)  # sharded: over all processes
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise NumericsError(
            f"loss {loss}, gradient norm {norm}: lower the learning rate, or remove the clip that causes it"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns two parameter groups: matrices with weight decay, and norms, biases and embeddings without."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    rest = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
