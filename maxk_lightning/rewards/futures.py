"""Chain futures so that nothing gets lost between them."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def done(result: A) -> "Future[A]":
    """A future that has its result already."""
    future: Future[A] = Future()
    future.set_result(result)
    return future


def then(first: "Future[A]", turn: Callable[[A], B]) -> "Future[B]":
    """A future for `turn(result)`; an exception of `first` or of `turn` is passed on to whoever waits for it."""
    second: Future[B] = Future()

    def pass_on(done: "Future[A]") -> None:
        try:
            result = turn(done.result())
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            second.set_exception(error)
        else:
            second.set_result(result)

    first.add_done_callback(pass_on)
    return second
