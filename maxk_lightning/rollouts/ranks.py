"""The processes that train together: which groups each of them samples, and what they agree on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
CPU = torch.device("cpu")


class RankError(RuntimeError):
    """A rank failed at something that all ranks do; all of them raise this, and none waits for another."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world_size`. Rank r samples every `world_size`-th group of the prompt stream, from r on.

    All ranks must call `together`, `all_true`, `largest`, `total`, `gather` and `gather_each` together, in the same
    order.
    """

    rank: int = 0
    "Number of this process, from 0."
    world_size: int = 1
    "Number of processes."
    device: torch.device = CPU
    "Device on which numbers are reduced: NCCL wants a GPU, gloo the CPU."

    def own(self, items: Sequence[T], first: int = 0) -> Sequence[T]:
        """The items of this rank, given all of them in the order of the prompt stream, or those from `first` on."""
        return items[(self.rank - first) % self.world_size :: self.world_size]

    def num_own(self, num_items: int) -> int:
        """How many of the first `num_items` are this rank's: (num_items - rank) / world_size, rounded up."""
        return max(0, -((self.rank - num_items) // self.world_size))

    def together(self, make: Callable[[], T]) -> T:
        """Return what `make` gives on this rank; ranks must not communicate inside `make`.

        Raises:
            RankError: `make` raised on one of several ranks; with a single rank its error passes unchanged.
        """
        if self.world_size == 1:
            return make()
        made, failure = [], None
        try:
            made.append(make())
        except Exception as error:  # noqa: BLE001 - rewards and engines are the user's; raised again on all ranks
            failure = error
        if not self.all_true(failure is None):
            sentences = self.gather_each(failure and f"{type(failure).__name__}: {failure}")
            failed = [f"rank {rank}: {sentence}" for rank, sentence in enumerate(sentences) if sentence is not None]
            raise RankError("; ".join(failed)) from failure
        return made[0]

    def all_true(self, value: bool) -> bool:
        """Whether the value is true on every rank."""
        return value if self.world_size == 1 else self.total([not value])[0] == 0

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Return the largest over the ranks of each number."""
        return self._reduced(numbers, "max")

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum over the ranks of each number."""
        return self._reduced(numbers, "sum")

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all ranks in the order of the prompt stream; the inverse of `own`."""
        return interleave(self.gather_each(items))

    def gather_each(self, thing: T) -> list[T]:
        """Return the thing of every rank, by rank."""
        return gathered(thing, self.world_size)

    def _reduced(self, numbers: Sequence[float], reduction: Literal["sum", "max"]) -> list[float]:
        if self.world_size == 1:
            return [float(number) for number in numbers]
        reduced = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced, dist.ReduceOp.MAX if reduction == "max" else dist.ReduceOp.SUM)
        return [float(number) for number in reduced]


class Launched(Protocol):
    """What a Lightning Trainer knows of its processes."""

    @property
    def global_rank(self) -> int:
        """Number of this process."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def strategy(self) -> Any:
        """Its `root_device` is the device of this process."""
        ...


def gathered(thing: T, num_ranks: int, group: Any = None) -> list[T]:
    """Return the thing of every rank of a process group (None: of all), by rank; they must call this together."""
    if num_ranks == 1:
        return [thing]
    things: list[T] = [thing] * num_ranks
    dist.all_gather_object(things, thing, group=group)
    return things


def ranks_of(trainer: Launched) -> Ranks:
    """Return the ranks of a Trainer."""
    return Ranks(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)


def interleave(shares: Sequence[Sequence[T]]) -> list[T]:
    """Return all items in the order of the prompt stream, given those of each rank.

    >>> interleave([["a", "c"], ["b"]])
    ['a', 'b', 'c']
    """
    num_items = sum(map(len, shares))
    return [shares[place % len(shares)][place // len(shares)] for place in range(num_items)]
