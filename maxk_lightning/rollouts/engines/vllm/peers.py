"""Ranks that form one tensor-parallel engine: they must submit the same requests in the same order, and step together.

vLLM's `external_launcher` starts a scheduler in every rank and relies on all of them deciding alike.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from maxk_lightning.rollouts.ranks import gathered

T = TypeVar("T")


class Peers:
    """The ranks of this rank's engine: `size` consecutive ones, as in vLLM. All peers must call a method together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._group: Any = None
        if size > 1:  # every rank must make every group
            first_ranks = range(0, dist.get_world_size(), size)
            groups = [dist.new_group(list(range(first, first + size)), backend="gloo") for first in first_ranks]
            self._group = groups[dist.get_rank() // size]

    def join(self, items: Sequence[T]) -> tuple[list[T], int]:
        """Return the items of all peers by rank, and the index of the first item of this rank."""
        shares = self._gather(list(items))
        first = sum(len(share) for share in shares[: dist.get_rank() % self.size]) if self.size > 1 else 0
        return [item for share in shares for item in share], first

    def any_true(self, value: bool) -> bool:
        """Whether the value is true on any peer."""
        return any(self._gather(value))

    def close(self) -> None:
        """Give the process group back."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _gather(self, thing: T) -> list[T]:
        return gathered(thing, self.size, self._group)
