"""Calls that all ranks make together, so that all of them fail when one does."""

from typing import TypeVar

import torch.distributed as dist

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.ranks import gathered

T = TypeVar("T")
Failure = EngineError | ValueError


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def of_all_ranks(thing: T) -> list[T]:
    """Return the thing of every rank, by rank; all ranks must call this together."""
    return gathered(thing, dist.get_world_size() if dist.is_initialized() else 1)


def told_by_first_rank(thing: T) -> T:
    """Return the thing of rank 0; all ranks must call this together."""
    return of_all_ranks(thing)[0]


def raise_together(failure: Failure | None) -> None:
    """Raise when any rank has failed: the failure of this rank, else that of the first rank that failed."""
    told = None if failure is None else (isinstance(failure, EngineError), str(failure))
    failures = [each for each in of_all_ranks(told) if each is not None]
    if failure is not None:
        raise failure
    if failures:
        is_engine_error, message = failures[0]
        raise EngineError(message) if is_engine_error else ValueError(message)
