"""Weights from GPU to GPU to a vLLM server, by its weight-transfer API (the form of vllm 0.29 and later)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from maxk_lightning.rollouts.engines.vllm.errors import as_engine_error
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.watchdog import HealthCheck, aborted_without, given_up_without

TOO_OLD = "rollout.engine.transfer: nccl and ipc need vllm 0.29 or later in the trainer, file does not"
IPC_BUFFER_BYTES = 1 << 30
"Part of the weights that is in transfer at a time, where both sides share a GPU."


class Source:
    """The weights in the type in which they travel, and what they look like."""

    def __init__(self, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> None:
        self.shapes = shapes
        self.dtype = dtype
        self.weights: Iterable[tuple[str, Tensor]] = ()

    def metadata(self) -> list[Any]:
        """Name, type and shape of every weight, in the order of iteration."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, self.dtype, tuple(shape)) for name, shape in self.shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.to(self.dtype)) for name, tensor in self.weights)


class Sender:
    """Pushes weights to a server, from rank 0 of the trainer.

    The `watchdog` notices a server that dies during a push; after that only `shutdown` may be called.
    """

    def __init__(self, *, server: Server, is_alive: Callable[[], bool], source: Source, init_info: Any) -> None:
        try:
            from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        except ImportError as error:
            raise ValueError(f"{TOO_OLD} ({error})") from error
        self._server = server
        self._is_alive = is_alive
        self._source = source
        client = HTTPVLLMWeightSyncClient(server.url, timeout=server.timeout_s)

        vllm_source = _as_vllms(source)

        def open_group() -> Any:
            return WeightTransferTrainerFactory.trainer_init(init_info, client=client, source=vllm_source)

        self._engine = given_up_without(self._health_check(), open_group, "opening the transfer of weights")

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Push all weights, in the order of the source's shapes.

        Raises:
            ValueError: a weight is not what it should be.
            EngineError: the server failed, died, or took too long.
        """
        self._source.weights = weights
        with as_engine_error("sending weights"), aborted_without(self._health_check(), self._abort):
            self._engine.send_weights()

    def shutdown(self) -> None:
        """Leave the group and give its memory back, also when the other side is gone."""
        with suppress(OSError, RuntimeError):
            self._engine.shutdown()

    def _health_check(self) -> HealthCheck:
        return HealthCheck(self._is_alive, self._server.timeout_s)

    def _abort(self) -> None:
        """Make a transfer that waits return: what is left of the weights is then gathered and sent to nobody."""
        group = getattr(self._engine, "model_update_group", None)
        if group is not None:
            group.destroy()


def nccl_info(*, address: str, port: int, num_workers: int) -> Any:
    """Describe how rank 0 and the workers of a server meet; ValueError if vLLM is too old."""
    try:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    except ImportError as error:
        raise ValueError(f"{TOO_OLD} ({error})") from error
    return NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=1 + num_workers)


def ipc_info(source: Source) -> Any:
    """Describe how a single rank hands weights to a server on its GPU; ValueError if vLLM is too old.

    The buffer is large enough for the largest weight.
    """
    try:
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    except ImportError as error:
        raise ValueError(f"{TOO_OLD} ({error})") from error
    largest = max(shape.numel() for shape in source.shapes.values()) * source.dtype.itemsize
    return IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(largest, IPC_BUFFER_BYTES))


def _as_vllms(source: Source) -> Any:
    from vllm.distributed.weight_transfer.base import WeightSource

    class VLLMSource(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[Any]:
            return source.metadata()

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(source)

    return VLLMSource()
