"""Several servers with the same weights: which one is asked next, and what happens when one of them fails."""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.vllm.completions import ROUTES
from maxk_lightning.rollouts.engines.vllm.link import Link
from maxk_lightning.rollouts.engines.vllm.watchdog import POLL_S, HealthCheck

T = TypeVar("T")
logger = logging.getLogger(__name__)
Failure = EngineError | ValueError


class Membership:
    """A server among those that are asked. One that was left out and taken back has another membership."""

    def __init__(self) -> None:
        self.num_unfinished = 0
        "Number of its unfinished requests."


class Fleet:
    """The servers that took the last push. One that fails is not asked again; any number of threads may ask."""

    def __init__(self, links: Sequence[Link], taken: Sequence[Link] | None = None) -> None:
        """Begin with the servers that have the weights; None: all of them."""
        self._all = list(links)
        self._members: dict[Link, Membership] = {}
        self._failure: BaseException | None = None  # of the last one that failed
        self._lock = threading.Lock()
        self.renew(self._all if taken is None else taken)

    @property
    def links(self) -> list[Link]:
        """Those that have not failed."""
        with self._lock:
            return list(self._members)

    def renew(self, links: Sequence[Link], failure: BaseException | None = None) -> None:
        """Continue with the servers that took another push; none if a failed push left no server with the weights."""
        with self._lock:
            self._members = {link: self._members.get(link) or Membership() for link in links}
            self._failure = failure or self._failure

    def ask(self, make: Callable[[Link], T]) -> T:
        """Return what `make` gets from the server with the fewest unfinished requests, or from another if that fails.

        The answer of a server that has failed meanwhile is not taken: it may have been restarted.

        Raises:
            EngineError: none is left.
            ValueError: `make` raised it.
        """
        while True:
            link, membership = self._begin()
            try:
                made = make(link)
                if self._end(link, membership):
                    return made
            except EngineError as error:
                self._leave_out(link, error, membership)
                if not self.links:
                    raise
            except ValueError:
                self._end(link, membership)
                raise

    def ask_each(self, make: Callable[[Link], T]) -> list[T]:
        """Return what `make` gets from each of them, asked at once; those that fail are left out.

        Raises:
            EngineError: none is left.
            ValueError: `make` raised it.
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
        self.check()
        return made

    def check(self) -> None:
        """Raise an EngineError when none is left."""
        if not self.links:
            raise self._none_left()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the body runs, leave out servers that are gone, and end the requests to those that are left out."""
        with watched(lambda: self.links, self._leave_out, self._left_out):
            yield

    def _begin(self) -> tuple[Link, Membership]:
        with self._lock:
            if not self._members:
                raise self._none_left()
            link, membership = min(self._members.items(), key=lambda item: item[1].num_unfinished)
            membership.num_unfinished += 1
            return link, membership

    def _end(self, link: Link, membership: Membership) -> bool:
        """Whether it has not failed meanwhile."""
        with self._lock:
            membership.num_unfinished -= 1
            return self._members.get(link) is membership

    def _leave_out(self, link: Link, error: EngineError, membership: Membership | None = None) -> None:
        """Do not ask it again; do nothing if it no longer has the given membership."""
        with self._lock:
            was_asked = link in self._members and membership in (None, self._members[link])
            if was_asked:
                del self._members[link]
                self._failure = error
            is_last = not self._members
        if was_asked and not is_last:
            tell_left_out(link, error)

    def _left_out(self) -> list[Link]:
        with self._lock:
            return [link for link in self._all if link not in self._members]

    def _none_left(self) -> EngineError:
        return EngineError(f"no vLLM server is left that has the last weights: {self._failure}")


@contextmanager
def watched(
    links: Callable[[], Sequence[Link]],
    tell: Callable[[Link, EngineError], None] | None = None,
    left_out: Callable[[], Sequence[Link]] = list,
) -> Iterator[None]:
    """While the body runs, end the requests of servers that are gone.

    A server that is asked to stop closes its port and stops computing, but a request that it had taken stays open.

    Args:
        links: Gives the links to the servers to look at.
        tell: Called when one of them is found to be gone, before its requests end.
        left_out: Gives the links to those whose completions are not wanted: they may be held for ever.
    """
    checks: dict[Link, HealthCheck] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_S):
            looked_at = links()
            for link in looked_at:
                checks.setdefault(link, HealthCheck(link.is_alive, math.inf))
            for link, failure in zip(looked_at, at_once(lambda link: checks[link].failure(), looked_at), strict=True):
                if failure is not None:
                    if tell is not None:
                        tell(link, EngineError(failure))
                    link.server.abort()
            for link in left_out():  # again and again: a request may have been about to begin
                link.server.abort(ROUTES)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def tell_left_out(link: Link, reason: Failure | str) -> None:
    """Warn that a server is not asked again."""
    logger.warning("the vLLM server at %s is left out until the next push of weights: %s", link.server.url, reason)


def at_once(make: Callable[[Link], T], links: Sequence[Link]) -> list[T | Failure]:
    """Return what `make` gets from each server, or how it failed; a thread per server."""

    def attempt(link: Link) -> T | Failure:
        try:
            return make(link)
        except (EngineError, ValueError) as error:
            return error

    if not links:
        return []
    with ThreadPoolExecutor(len(links), thread_name_prefix="vllm") as pool:
        return list(pool.map(attempt, links))
