"""Several servers with the same weights: who is asked next, and what happens when one of them fails."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.vllm.link import Link

T = TypeVar("T")
logger = logging.getLogger(__name__)
Failure = EngineError | ValueError
NONE_LEFT = "no vLLM server is left that has the last weights"


class Fleet:
    """The servers that took the last push. One that fails is asked no more; any number of threads may ask."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._unfinished = dict.fromkeys(links, 0)
        self._lock = threading.Lock()

    @property
    def links(self) -> list[Link]:
        """Those that have not failed."""
        with self._lock:
            return list(self._unfinished)

    def ask(self, make: Callable[[Link], T]) -> T:
        """What `make` gets from the server with the fewest unfinished requests; from another one when that fails.

        Raises:
            EngineError: none is left.
        """
        while True:
            link = self._begin()
            try:
                return make(link)
            except EngineError as error:
                self._leave_out(link, error)
            finally:
                self._end(link)

    def ask_each(self, make: Callable[[Link], T]) -> list[T]:
        """What `make` gets from each of them, at once; those that fail are left out.

        Raises:
            EngineError: none is left.
        """
        made = []
        links = self.links
        if not links:
            raise EngineError(NONE_LEFT)
        for link, result in zip(links, at_once(make, links), strict=True):
            if isinstance(result, EngineError):
                self._leave_out(link, result)
            elif isinstance(result, ValueError):
                raise result
            else:
                made.append(result)
        return made

    def _begin(self) -> Link:
        with self._lock:
            if not self._unfinished:
                raise EngineError(NONE_LEFT)
            link = min(self._unfinished, key=self._unfinished.__getitem__)
            self._unfinished[link] += 1
            return link

    def _end(self, link: Link) -> None:
        with self._lock:
            if link in self._unfinished:
                self._unfinished[link] -= 1

    def _leave_out(self, link: Link, error: EngineError) -> None:
        with self._lock:
            was_asked = self._unfinished.pop(link, None) is not None
            num_left = len(self._unfinished)
        if not num_left:
            raise error
        if was_asked:
            tell_left_out(link, error)


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
