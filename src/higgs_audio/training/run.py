"""The folder of a training run: its resumable state, its metrics and the arithmetic both loops share.

A step's randomness is a function of (seed, step) alone, see `seed_step`; so the state to resume from is the
parameters, the optimizer and the number of steps done, and a resumed run equals an uninterrupted one bit for bit.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from higgs_audio.errors import CheckpointError, NumericsError, RecipeError


class Run:
    """Checkpoints (`state.pt`), metrics (`metrics.jsonl`, tensorboard when installed) and progress of one run.

    Args:
        folder: created if missing; a `state.pt` inside is resumed from.
        save_every: steps between checkpoints.
        log_every: steps between metric lines, which hold the means since the last.
        quiet: write and print nothing: another process of the same run does.
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
        """Loads every part's state dict from the last checkpoint; returns the number of steps done.

        Raises RecipeError where the checkpoint is another recipe's, before anything is loaded, and CheckpointError
        where it cannot be read.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return 0
        state = _load(path)
        own = {name: part.state_dict() for name, part in parts.items()} | {"step": 0}
        check_same(path, _sizes(state), _sizes(own))
        for name, part in parts.items():
            part.load_state_dict(state[name])
        print(f"resumed {self.folder} at step {state['step']}", file=sys.stderr)
        return self.continue_from(int(state["step"]))

    def continue_from(self, step: int) -> int:
        """Forgets the metrics of steps after `step`, which will be done again; returns it."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return step
        whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        self._lines = [line for line in map(json.loads, whole) if line["step"] <= step]
        if not self.quiet:
            temporary = path.with_name("metrics.jsonl.part")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self._lines), encoding="utf-8")
            os.replace(temporary, path)
        return step

    def is_best(self, name: str) -> bool:
        """Whether the last recorded `name` is lower than all before it."""
        values = self._values(name)
        return bool(values) and values[-1] < min(values[:-1], default=math.inf)

    def is_stale(self, name: str, patience: int) -> bool:
        """Whether none of the last `patience` values of `name` was a new lowest one; never where `patience` is 0."""
        values = self._values(name)
        return 0 < patience < len(values) and min(values[-patience:]) >= min(values[:-patience])

    def _values(self, name: str) -> list[float]:
        return [line[name] for line in self._lines if name in line]

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Writes the checkpoint beside the old one, then renames: a kill leaves the old one whole.

        Raises CheckpointError where it cannot be written, as on a full disk.
        """
        state = {name: part.state_dict() for name, part in parts.items()} | {"step": step}
        temporary = self.folder / "state.pt.part"
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.folder / "state.pt")
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"step {step} cannot be saved in {str(self.folder)!r}: {str(error).splitlines()[0]}. What was saved "
                "before is whole: make room and start the run again"
            ) from error

    def due(self, step: int, num_steps: int) -> bool:
        """Whether a checkpoint belongs after step number `step` (counted from 1)."""
        return step % self.save_every == 0 or step == num_steps

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one step's values; every `log_every` steps writes their means and the seconds a step took."""
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
        """Writes one line of metrics now, to the file, the board and stderr."""
        rounded = {name: round(float(value), 5) for name, value in values.items()}
        self._lines.append({"step": step, **rounded})
        if self.quiet:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **rounded}) + "\n")
        for name, value in rounded.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        print(f"step {step:6d}  " + "  ".join(f"{n} {v:.4g}" for n, v in rounded.items()), file=sys.stderr, flush=True)

    @cached_property
    def _board(self) -> Any:
        """Made with the first number: a run that is refused leaves nothing in the folder."""
        return _tensorboard(self.folder)


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}; delete it to train from the start") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{str(path)!r} is not the state of a run; delete it to train from the start")
    return state


def check_same(path: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises RecipeError, naming the first difference, where the sizes of a saved state are not those of a run's."""
    said = next((f"{n} is {there[n]} there and {here[n]} here" for n in here if there.get(n, here[n]) != here[n]), "")
    for names, place in ((there.keys() - here.keys(), "there"), (here.keys() - there.keys(), "here")):
        if names:
            said = f"{min(names)} is only {place}"
    if said:
        raise RecipeError(
            f"{str(path)!r} is the state of another recipe's run: {said}. Give another output folder, or that recipe"
        )


def _sizes(state: Mapping[str, Any]) -> dict[str, str]:
    """Every tensor of a module's state with its shape, every group of an optimizer's with its number of parameters."""
    sizes = dict.fromkeys(state, "a part")
    for name, part in state.items():
        entries = part if isinstance(part, dict) else {}
        groups = enumerate(entries.get("param_groups", ()))
        sizes |= {f"{name} group {number}": f"{len(group['params'])} parameters" for number, group in groups}
        tensors = ((key, value) for key, value in entries.items() if isinstance(value, torch.Tensor))
        sizes |= {f"{name} {key}": str(list(value.shape)) for key, value in tensors}
    return sizes


def _tensorboard(folder: Path) -> Any:
    """A SummaryWriter, or None where tensorboard is not installed: the JSONL file has the same numbers."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "board"))


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seeds torch for one step and returns a separate generator for its data, both functions of (seed, step)."""
    number = seed * 1_000_003 + step
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number + 0x5EED_0000)  # a CPU generator reads 32 bits of its seed


def learning_rate(step: int, num_steps: int, peak: float, warmup: int, final: float) -> float:
    """Linear warm-up to `peak`, then a cosine to `final` at `num_steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def apply_gradients(
    loss: torch.Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, rate: float, max_norm: float
) -> float:
    """Backward, clip, step; returns the gradient norm. Raises NumericsError before anything is changed."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return apply_step(float(loss.detach()), module, optimizer, rate, max_norm)


def apply_step(loss: float, module: nn.Module, optimizer: torch.optim.Optimizer, rate: float, max_norm: float) -> float:
    """Clips the gradients that are there and steps; returns their norm.

    Raises NumericsError, before anything is changed, where the loss or the norm is not finite.
    """
    length: Any = nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    norm = float(length.full_tensor() if hasattr(length, "full_tensor") else length)  # of shards: over all processes
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise NumericsError(f"loss {loss}, gradient norm {norm}: lower the learning rate or find the clip")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: matrices with weight decay; norms, biases and embeddings without."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    rest = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
