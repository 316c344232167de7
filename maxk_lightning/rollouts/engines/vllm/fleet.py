"""Several servers with the same weights: who is asked next, and what happens when one of them fails."""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.vllm.link import Link
from maxk_lightning.rollouts.engines.vllm.watchdog import POLL_S, Pulse

T = TypeVar("T")
logger = logging.getLogger(__name__)
Failure = EngineError | ValueError


class Fleet:
    """The servers that took the last push. One that fails is asked no more; any number of threads may ask."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._unfinished = dict.fromkeys(links, 0)
        self._failure: EngineError | None = None  # of the last one that failed
        self._lock = threading.Lock()

    @property
    def links(self) -> list[Link]:
        """Those that have not failed."""
        with self._lock:
            return list(self._unfinished)

    def ask(self, make: Callable[[Link], T]) -> T:
        """What `make` gets from the server with the fewest unfinished requests; from another one when that fails.

        What a server answers that has failed meanwhile is not taken: it may have been started anew.

        Raises:
            EngineError: none is left.
        """
        while True:
            link = self._begin()
            try:
                made = make(link)
                if self._end(link):
                    return made
            except EngineError as error:
                self._leave_out(link, error)
                if not self.links:
                    raise
            except ValueError:
                self._end(link)
                raise

    def ask_each(self, make: Callable[[Link], T]) -> list[T]:
        """What `make` gets from each of them, at once; those that fail are left out.

        Raises:
            EngineError: none is left.
        """
        made = []
        links = self.links
        with self.watched():
            results = at_once(make, links)
        for link, result in zip(links, results, strict=True):
            if isinstance(result, EngineError):
                self._leave_out(link, result)
            elif isinstance(result, ValueError):
                raise result
            else:
                made.append(result)
        if not self.links:
            raise self._none_left()
        return made

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave out, while the body runs, those that are gone, also where their requests would wait for ever."""
        with watched(self.links, self._leave_out):
            yield

    def _begin(self) -> Link:
        with self._lock:
            if not self._unfinished:
                raise self._none_left()
            link = min(self._unfinished, key=self._unfinished.__getitem__)
            self._unfinished[link] += 1
            return link

    def _end(self, link: Link) -> bool:
        """Whether it has not failed meanwhile."""
        with self._lock:
            if link not in self._unfinished:
                return False
            self._unfinished[link] -= 1
            return True

    def _leave_out(self, link: Link, error: EngineError) -> None:
        with self._lock:
            was_asked = self._unfinished.pop(link, None) is not None
            is_last = not self._unfinished
            if was_asked:
                self._failure = error
        if was_asked and not is_last:
            tell_left_out(link, error)

    def _none_left(self) -> EngineError:
        return EngineError(f"no vLLM server is left that has the last weights: {self._failure}")


@contextmanager
def watched(links: Sequence[Link], tell: Callable[[Link, EngineError], None] | None = None) -> Iterator[None]:
    """While the body runs, end the requests of servers that are gone.

    One that was told to stop closes its port and ends what computes, but a request that it had taken stays open.

    Args:
        links: To the servers.
        tell: Called when one of them is found to be gone, before its requests end.
    """
    pulses = {link: Pulse(link.is_alive, math.inf) for link in links}
    gone: set[Link] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_S):
            for link, failure in zip(pulses, at_once(lambda link: pulses[link].failure(), list(pulses)), strict=True):
                if failure is not None and link not in gone:
                    gone.add(link)
                    if tell is not None:
                        tell(link, EngineError(failure))
            for link in gone:  # again and again: a request may have been about to begin
                link.server.abort()

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def tell_left_out(link: Link, reason: Failure | str) -> None:
    """Warn that a server is asked no more."""
    logger.warning("the vLLM server at %s is left out until the next push of weights: %s", link.server.url, reason)


def at_once(make: Callable[[Link], T], links: Sequence[Link]) -> list[T | Failure]:
    """What `make` gets from each server, or how it failed; a thread per server."""

    def attempt(link: Link) -> T | Failure:
        try:
            return make(link)
        except (EngineError, ValueError) as error:
            return error

    if not links:
        return []
    with ThreadPoolExecutor(len(links), thread_name_prefix="vllm") as pool:
        return list(pool.map(attempt, links))
