"""Training in one process or many: who we are, sums over everybody, and the model in shards (FSDP2).

Under torchrun every process of a step reads its own share of the same conversations; started without it there is one
process and nothing is exchanged, by the same code.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from higgs_audio.errors import OptionError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class World:
    """This process's number, how many there are, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints' common files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes."""
        if self.size == 1:
            return values
        summed = values.detach().to(self.device).clone()
        dist.all_reduce(summed)
        return summed

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Ends what `join_world` began."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(device: str = "") -> World:
    """This process's place, from the variables that torchrun sets; alone without them.

    Args:
        device: "cpu" or "cuda"; "" takes a GPU where there is one.

    Raises OptionError for a device that is not there.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise OptionError(f"device={device!r}: train on 'cpu', or on 'cuda' where there is a GPU")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    return World(int(os.environ.get("RANK", "0")), size, place)


def shard(module: nn.Module, layers: Sequence[nn.Module], world: World, precision: str, regather: bool = True) -> None:
    """Divides the parameters of `module` among all processes, each of `layers` as a unit of its own, in place.

    Args:
        precision: what a forward pass computes in, see PRECISIONS; the sums of gradients are in float32.
        regather: free a layer's gathered parameters after its forward pass and gather them again for the backward one;
            False where something else than the layer reads them in between.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    kind = PRECISIONS[precision]
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": regather}
    options["mp_policy"] = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(module, **options)


def shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of the items of each of `count` shares of about equal size: the largest first, to the smallest share."""
    chosen: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        place = filled.index(min(filled))
        chosen[place].append(number)
        filled[place] += sizes[number]
    return [sorted(numbers) for numbers in chosen]
