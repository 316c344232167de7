"""The processes that train together: which groups each of them samples, and what they agree on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world_size`. Rank r samples every `world_size`-th group of the prompt stream, from r on.

    All ranks must call `all_true`, `largest`, `total`, `together`, `gather` and `gather_each` together, in the same
    order.
    """

    rank: int = 0
    "Number of this process, from 0."
    world_size: int = 1
    "Number of processes."
    device: torch.device = CPU
    "Device on which numbers are reduced: NCCL wants a GPU, gloo the CPU."

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this rank, given all of them in the order of the prompt stream."""
        return items[self.rank :: self.world_size]

    def num_own(self, num_items: int) -> int:
        """How many of the first `num_items` are this rank's: (num_items - rank) / world_size, rounded up."""
        return max(0, -((self.rank - num_items) // self.world_size))

    def all_true(self, value: bool) -> bool:
        """Whether it is true on every rank."""
        return value if self.world_size == 1 else self.total([not value])[0] == 0

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest over the ranks of each number."""
        return self._reduced(numbers, "max")

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum over the ranks of each number."""
        return self._reduced(numbers, "sum")

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all ranks in the order of the prompt stream; the inverse of `own`."""
        return interleave(self.gather_each(items))

    def together(self, make: Callable[[], T]) -> T:
        """The result of a call on every rank, in which no rank waits for another one behind an input that it refuses.

        Raises:
            ValueError: the call refused its input, here or on any other rank, which would wait for this one.
        """
        refusal = result = None
        try:
            result = make()
        except ValueError as error:
            refusal = error
        told = [message for message in self.gather_each(None if refusal is None else str(refusal)) if message]
        if told:
            raise refusal or ValueError(told[0])
        return cast(T, result)

    def gather_each(self, thing: T) -> list[T]:
        """The thing of every rank, by rank."""
        if self.world_size == 1:
            return [thing]
        gathered: list[T] = [thing] * self.world_size
        dist.all_gather_object(gathered, thing)
        return gathered

    def _reduced(self, numbers: Sequence[float], reduction: Literal["sum", "max"]) -> list[float]:
        if self.world_size == 1:
            return [float(number) for number in numbers]
        reduced = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced, dist.ReduceOp.MAX if reduction == "max" else dist.ReduceOp.SUM)
        return [float(number) for number in reduced]


def interleave(shares: Sequence[Sequence[T]]) -> list[T]:
    """All items in the order of the prompt stream, given those of each rank.

    >>> interleave([["a", "c"], ["b"]])
    ['a', 'b', 'c']
    """
    num_items = sum(map(len, shares))
    return [shares[place % len(shares)][place // len(shares)] for place in range(num_items)]
