"""Ends what waits for a server that is gone: NCCL itself would wait for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.vllm.errors import as_engine_error

T = TypeVar("T")
POLL_S = 1.0
"Seconds between two checks of the server."
NUM_LOOKS = 3
"Checks in a row at which it must be missing: a busy server may answer late."


class HealthCheck:
    """Whether a server still lives and is in time, by checks that are `POLL_S` apart."""

    def __init__(self, is_alive: Callable[[], bool], timeout_s: float) -> None:
        self._is_alive = is_alive
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._num_missing = 0

    def failure(self) -> str | None:
        """Check the server: what is wrong; None: nothing is known to be wrong."""
        if time.monotonic() > self._deadline:
            return f"the vLLM server took longer than rollout.engine.timeout_s ({self._timeout_s:g} s)"
        self._num_missing = 0 if self._is_alive() else self._num_missing + 1
        return "the vLLM server is gone" if self._num_missing >= NUM_LOOKS else None


@contextmanager
def aborted_without(health: HealthCheck, abort: Callable[[], None]) -> Iterator[None]:
    """Call `abort` from another thread when the health check fails while the body runs.

    Raises:
        EngineError: it failed, also where the body ended as if nothing had happened.
    """
    failures: list[str] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_S):
            if failure := health.failure():
                failures.append(failure)
                abort()
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if failures:
            raise EngineError(failures[0]) from error
        raise
    finally:
        is_over.set()
        thread.join()
    if failures:
        raise EngineError(failures[0])


def given_up_without(health: HealthCheck, make: Callable[[], T], doing: str) -> T:
    """Return the result of a call to vLLM that nothing can abort; when the check fails, its thread is left behind.

    Raises:
        EngineError: the health check failed, or the call.
    """
    results: SimpleQueue[T | EngineError] = SimpleQueue()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            with as_engine_error(doing, also_values=True):
                if device is not None:  # every thread starts with the first
                    torch.cuda.set_device(device)
                results.put(make())
        except EngineError as error:  # handed over to the thread that waits
            results.put(error)

    threading.Thread(target=run, name="handshake", daemon=True).start()
    while True:
        try:
            result = results.get(timeout=POLL_S)
        except Empty:
            if failure := health.failure():
                raise EngineError(failure) from None
        else:
            if isinstance(result, EngineError):
                raise result
            return result
