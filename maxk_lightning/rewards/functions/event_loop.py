"""One event loop in a thread of its own, for reward functions that are `async def`."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines; its loop lives as long as the process, and so may what they keep open between calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner_pid = 0

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine; returns at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._owner_pid != os.getpid():  # a fork has no thread that runs the loop
                self._loop = asyncio.new_event_loop()
                self._owner_pid = os.getpid()
                threading.Thread(target=self._loop.run_forever, name="async-rewards", daemon=True).start()
            return self._loop


LOOP_THREAD = LoopThread()
