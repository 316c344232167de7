"""Where a colocated engine starts: which device, beside how many other ranks."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Process and device of a rank."""

    on_gpu: bool
    "Whether it has a GPU."
    device_index: int = 0
    "Number of its GPU among the visible ones."
    rank: int = 0
    "Number of this process."
    world_size: int = 1
    "Number of processes that train together."

    def check(self, tensor_parallel_size: int) -> None:
        """Refuse a place where vLLM cannot work.

        Raises:
            ValueError: a single rank on another GPU than the first, or ranks that cannot be split into engines.
        """
        if self.on_gpu and self.world_size == 1 and self.device_index != 0:
            raise ValueError(
                f"rollout.engine: this process is on cuda:{self.device_index}, but a single vLLM takes the first "
                f"visible GPU; start with CUDA_VISIBLE_DEVICES={name_of_gpu(self.device_index)} and trainer.devices: 1"
            )
        if self.world_size % tensor_parallel_size:
            raise ValueError(
                f"rollout.engine.tensor_parallel_size is {tensor_parallel_size}, but the {self.world_size} ranks of "
                "the trainer cannot be split into groups of that size"
            )

    def announce(self) -> None:
        """Set the variables that torchrun sets and other launchers do not: vLLM reads them when several ranks start."""
        if self.world_size > 1:
            local_rank = str(self.device_index) if self.on_gpu else os.environ.get("LOCAL_RANK", "0")
            os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world_size), LOCAL_RANK=local_rank)


def current_place() -> Place:
    """The place of this process."""
    on_gpu = torch.cuda.is_available()
    device_index = torch.cuda.current_device() if on_gpu else 0
    if not dist.is_initialized():
        return Place(on_gpu=on_gpu, device_index=device_index)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return Place(on_gpu=on_gpu, device_index=device_index, rank=rank, world_size=world_size)


def name_of_gpu(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls a visible GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)
