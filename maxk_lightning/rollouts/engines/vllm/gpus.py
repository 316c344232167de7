"""Which GPUs the trainer is on, and whether a server's are others."""

import socket
from dataclasses import dataclass

import torch

from maxk_lightning.rollouts.engines.vllm.place import name_of_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGpu:
    """The GPU of one rank of the trainer."""

    host: str
    "Name of its machine."
    name: str
    "What CUDA_VISIBLE_DEVICES of that machine calls it: an index, or GPU-..."
    uuid: str
    "GPU-..."

    def is_called(self, name: str) -> bool:
        """Whether this is a name of it in CUDA_VISIBLE_DEVICES; the end of a UUID may be left out."""
        return name == self.name or (name.startswith("GPU-") and self.uuid.startswith(name))


def own_gpu() -> RankGpu | None:
    """The GPU of this process; None: it has none."""
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device()
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    return RankGpu(host=socket.gethostname(), name=name_of_gpu(index), uuid=uuid)


def check_gpus(gpus: str | None, num_needed: int, ranks: list[RankGpu | None]) -> None:
    """Refuse a server on the trainer's GPUs: each would take the memory of the other.

    Args:
        gpus: CUDA_VISIBLE_DEVICES of the server.
        num_needed: GPUs that it computes on.
        ranks: GPUs of the trainer by rank; the server is started by the first.

    Raises:
        ValueError: none are given, too few, or some that a rank computes on.
    """
    first = ranks[0]
    if first is None:
        return
    if gpus is None:
        raise ValueError(
            "rollout.engine.gpus: a server that is started here needs GPUs that no rank trains on, e.g. gpus: "
            f'"{len(ranks)}" and trainer.devices: {len(ranks)}; on a GPU shared with training take transfer: ipc'
        )
    names = [name.strip() for name in gpus.split(",") if name.strip()]
    if len(names) < num_needed:
        raise ValueError(f'rollout.engine.gpus is "{gpus}", but the server_args ask for {num_needed} GPUs')
    neighbours = [gpu for gpu in ranks if gpu is not None and gpu.host == first.host]
    shared = [name for name in names if any(gpu.is_called(name) for gpu in neighbours)]
    if shared:
        raise ValueError(
            f'rollout.engine.gpus is "{gpus}", but the policy trains on {", ".join(shared)}; take others, or leave '
            "these out of the trainer's CUDA_VISIBLE_DEVICES"
        )
