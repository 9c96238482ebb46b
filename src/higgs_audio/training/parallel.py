"""Training in one process or several: rank and world size, collective operations, and sharded parameters (FSDP2).

Under torchrun each process reads its own share of a step's conversations. Without torchrun the same code runs in one
process, without communication.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from higgs_audio.errors import OptionError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and the files of checkpoints that are not sharded."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Returns the sum of `values` over all processes."""
        if self.size == 1:
            return values
        summed = values.detach().to(self.device).clone()
        dist.all_reduce(summed)
        return summed

    def barrier(self) -> None:
        """Waits until all processes call it."""
        if self.size > 1:
            dist.barrier()

    def destroy(self) -> None:
        """Destroys the process group of `init_distributed`."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def init_distributed(device: str = "") -> World:
    """Initializes the process group from torchrun's environment variables; without them there is one process.

    Args:
        device: "cpu" or "cuda"; "" chooses a GPU if there is one.

    Raises:
        OptionError: an unavailable device.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise OptionError(f"device={device!r}: train on 'cpu', or on 'cuda' if there is a GPU")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own_device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(own_device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    return World(int(os.environ.get("RANK", "0")), size, own_device)


def shard(
    module: nn.Module, layers: Sequence[nn.Module], world: World, precision: str, reshard_after_forward: bool = True
) -> None:
    """Shards the parameters of `module` over all processes, in place; each of `layers` is a separate FSDP unit.

    Args:
        module: the module, with all `layers`.
        layers: its layers.
        world: the processes.
        precision: dtype of the forward pass, a key of PRECISIONS; gradients are reduced in float32.
        reshard_after_forward: whether to free a layer's gathered parameters after its forward pass and gather them
            again for the backward pass; must be False if other code reads them in between.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=PRECISIONS[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    mesh = init_device_mesh(world.device.type, (world.size,))
    for unit in (*layers, module):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)


def partition(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divides items into `count` groups of about equal total size: largest first, into the smallest group.

    Returns:
        The item indices of each group.
    """
    chosen: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        smallest = totals.index(min(totals))
        chosen[smallest].append(number)
        totals[smallest] += sizes[number]
    return [sorted(numbers) for numbers in chosen]
