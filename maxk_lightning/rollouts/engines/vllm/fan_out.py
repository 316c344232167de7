"""One pass over the weights for several receivers: gathering them twice would take twice the time."""

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from maxk_lightning.rollouts.engine import EngineError

POLL_S = 0.1
"Seconds between two checks of a receiver that takes nothing: it may have ended."
Named = tuple[str, Tensor]
Failure = EngineError | ValueError
Receiver = Callable[[Iterator[Named]], None]


def fan_out(weights: Iterator[Named], dtype: torch.dtype, receivers: Sequence[Receiver]) -> list[Failure | None]:
    """Hand every weight to all receivers, each in a thread of its own; return how each of them failed, or None.

    All of them keep the pace of the slowest, so that no more than two weights per receiver are held; one that has
    failed delays nobody. A single receiver iterates `weights` itself, in this thread.

    Args:
        weights: Iterated in this thread, to the end also when every receiver has failed: other ranks do so, too.
        dtype: Type in which several receivers get them.
        receivers: Called with an iterator each.

    Raises:
        ValueError: `weights` raised it, or a single receiver.
    """
    if len(receivers) == 1:
        try:
            receivers[0](weights)
        except EngineError as error:
            return [error]
        return [None]
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    with ThreadPoolExecutor(len(receivers), thread_name_prefix="push") as pool:
        handovers = [_Handover() for _ in receivers]
        futures = [
            pool.submit(_receive, receiver, handover, device)
            for receiver, handover in zip(receivers, handovers, strict=True)
        ]
        last: Exception | None = EngineError("the push of weights was interrupted")
        try:
            for name, tensor in weights:
                item = name, tensor.detach().to(dtype)
                if tensor.is_cuda:  # receivers compute in streams of their own
                    torch.cuda.current_stream(tensor.device).synchronize()
                for handover, future in zip(handovers, futures, strict=True):
                    handover.put(item, future)
            last = None
        except Exception as error:
            last = error
            raise
        finally:
            for handover, future in zip(handovers, futures, strict=True):
                handover.put(last, future)
    return [future.result() for future in futures]


class _Handover:
    """What one receiver is handed, one by one; None at the end, or the error that ended it all."""

    def __init__(self) -> None:
        self._items: queue.Queue[Named | Exception | None] = queue.Queue(1)

    def put(self, item: Named | Exception | None, receiver: "Future[Failure | None]") -> None:
        """Wait until it fits, or the receiver has ended."""
        while not receiver.done():
            try:
                self._items.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[Named]:
        while (item := self._items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            if item[1].is_cuda:  # or its memory is given away while this stream still reads it
                item[1].record_stream(torch.cuda.current_stream(item[1].device))
            yield item


def _receive(receiver: Receiver, handover: _Handover, device: int | None) -> Failure | None:
    if device is not None:  # every thread starts with the first
        torch.cuda.set_device(device)
    try:
        receiver(iter(handover))
    except (EngineError, ValueError) as error:
        return error
    return None
