"""A rank of a trainer that pushes weights to failing servers: a script, `server_ranks.py RANK STORE PLAN URL PEER ...`.

Prints what the push ended with: the error, or the servers that have the weights. `dies`: the weights go one by one to a
peer of the server over a socket, and as with NCCL a send to a peer that is gone neither fails nor returns until the
group is destroyed. `refuses`: the server refuses the request that only rank 0 makes.
"""

import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import EngineError, VLLMServerEngine


class Group:
    """What vLLM calls a communicator, over a socket."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.peer = socket.create_connection(address)
        self.is_destroyed = threading.Event()

    def broadcast(self, tensor: Tensor) -> None:
        """Return once the peer has it, or the group is destroyed."""
        if self.is_destroyed.is_set():
            return
        try:
            self.peer.sendall(b"w")
            if self.peer.recv(1):
                return
        except OSError:
            pass
        self.is_destroyed.wait()

    def destroy(self) -> None:
        """Let a waiting `broadcast` return."""
        self.is_destroyed.set()


class Engine:
    """The trainer's side of a transfer, as vLLM drives it."""

    def __init__(self, source: Any, group: Group) -> None:
        self.source = source
        self.model_update_group = group

    def send_weights(self) -> None:
        """Send all of the source."""
        assert len(self.source.metadata()) > 3
        for _, tensor in self.source:
            self.model_update_group.broadcast(tensor)

    def shutdown(self) -> None:
        """Leave."""


def _weights() -> Iterator[tuple[str, Tensor]]:
    """Weights that all ranks gather together."""
    for name, tensor in load_model("builtin").state_dict().items():
        dist.all_reduce(torch.ones(1))
        yield name, tensor


def main(rank: int, store: str, plan: str, *places: str) -> None:
    """Push once, and tell how it ended."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    urls, peers = list(places[::2]), places[1::2]
    if plan == "dies":
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        def trainer_init(info: Any, *, client: Any, source: Any) -> Engine:
            assert info.rank == rank == 0
            return Engine(source, Group(("127.0.0.1", int(peers[urls.index(client.base_url)]))))

        WeightTransferTrainerFactory.trainer_init = trainer_init
    engine = VLLMServerEngine(urls=urls, transfer="nccl" if plan == "dies" else "file")
    try:
        engine.load_weights(_weights(), 1)
        assert engine._fleet is not None
        print("taken by", *(link.server.url for link in engine._fleet.links))
    except (EngineError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
    engine.close()
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
