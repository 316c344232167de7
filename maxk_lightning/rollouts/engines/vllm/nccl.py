"""Weights over NCCL to a vLLM server."""

import json
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from maxk_lightning.rollouts.engines.vllm.errors import as_engine_error

WIRE_DTYPE = torch.bfloat16
"Type in which weights travel to a server."


class NCCLSender:
    """Pushes weights to a vLLM server through its weight-transfer API (the form of vllm 0.29 and later), GPU to GPU.

    All ranks of the trainer hold one and call it together; rank 0 sends. One NCCL group with the server's workers,
    opened at the first push.
    """

    def __init__(
        self,
        *,
        base_url: str,
        shapes: Mapping[str, torch.Size],
        rank: int,
        master_address: str,
        master_port: int,
        timeout_s: float,
    ) -> None:
        try:
            from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
            from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except ImportError as error:
            reason = f"rollout.engine.transfer: nccl needs vllm 0.29 or later in the trainer, file does not ({error})"
            raise ValueError(reason) from error

        class Source(WeightSource):  # type: ignore[misc]
            weights: Iterable[tuple[str, Tensor]] = ()

            def metadata(self) -> list[Any]:
                return [ParamMeta(name, WIRE_DTYPE, tuple(shape)) for name, shape in shapes.items()]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                return ((name, tensor.to(WIRE_DTYPE)) for name, tensor in self.weights)

        self._source = Source()
        with as_engine_error("opening the transfer of weights"):
            with urllib.request.urlopen(f"{base_url}/get_world_size", timeout=timeout_s) as response:
                num_workers = json.load(response)["world_size"]
            self._engine = WeightTransferTrainerFactory.trainer_init(
                NCCLTrainerInitInfo(
                    rank=rank, master_address=master_address, master_port=master_port, world_size=1 + num_workers
                ),
                client=HTTPVLLMWeightSyncClient(base_url, timeout=timeout_s),
                source=self._source,
            )

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Push all weights, in the order of `shapes`."""
        self._source.weights = weights
        with as_engine_error("sending weights"):
            self._engine.send_weights()

    def shutdown(self) -> None:
        """Leave the NCCL group."""
        self._engine.shutdown()
