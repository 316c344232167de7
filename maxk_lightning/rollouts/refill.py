"""Further prompts for a rollout while too few of its groups have credit (dynamic sampling, DAPO, arXiv:2503.14476).

A place is the number of a prompt in its rollout, over all ranks: first the ordered prompts, then the further ones.
Every decision is a function of which places have credit, so it is the same on any number of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from maxk_lightning.objectives import Objective, is_idle
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, extended, facts_of, rewards_of

Orders = Callable[[range], Order]
"Places of a rollout -> what this rank is to sample of them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """How far a rollout may be refilled, and with what."""

    max_batches: int
    "Further batches of prompts, at most."
    num_wanted: int
    "Groups with credit that optimizer steps are made of, over all ranks; also the largest batch."
    num_places: int
    "Prompts that there are for this rollout, the ordered ones included."
    objective: Objective
    "The objective in force for this rollout."
    orders: Orders
    "Further prompts by their places."

    def joined(self, rollout: Rollout, part: Rollout) -> Rollout:
        """Join the groups of both into one rollout."""
        samples = rollout.samples
        return extended(rollout, part, replace(samples, groups=[*samples.groups, *part.samples.groups]))

    def proceed(self, rollout: Rollout, num_parts: int, ranks: Ranks) -> tuple[Rollout, Order | None]:
        """Return the rollout and the next batch, or the rollout with the groups that steps are made of."""
        credited = ranks.gather(has_credit(self.objective, rollout.samples.groups))
        if places := self.next_places(credited, num_parts):
            return rollout, self.orders(places)
        return replace(rollout, chosen=choose(credited, self.num_wanted)), None

    def next_places(self, has_credit: Sequence[bool], num_batches: int) -> range:
        """Choose the places to sample next; empty: none.

        They are as many as should give the missing groups, at the share of groups with credit so far. A batch is never
        larger than the rollout that was ordered, for which the memory of engines is planned.

        Args:
            has_credit: Whether each group so far has credit, in order of its place.
            num_batches: Number of further batches so far.
        """
        num_drawn, num_credited = len(has_credit), sum(has_credit)
        num_missing = self.num_wanted - num_credited
        if num_missing <= 0 or num_batches >= self.max_batches:
            return range(0)
        size = min(self.num_wanted, -(-num_missing * num_drawn // max(1, num_credited)))
        return range(num_drawn, min(num_drawn + size, self.num_places))


class Further(Protocol):
    """Decides by the rewards so far what else to sample for a rollout; all ranks must call it together."""

    def joined(self, rollout: Rollout, part: Rollout) -> Rollout:
        """Join what this rank had sampled before and the part that was due into one rollout."""
        ...

    def proceed(self, rollout: Rollout, num_parts: int, ranks: Ranks) -> tuple[Rollout, Order | None]:
        """Return the rollout, and what this rank is to sample next; None: the rollout is complete.

        Args:
            rollout: What this rank has sampled.
            num_parts: Number of parts before the last one.
            ranks: All ranks.
        """
        ...


class Draw:
    """A rollout that is being sampled: the ordered prompts, then part after part as the rewards demand it."""

    def __init__(self, order: Order, further: Further | None) -> None:
        """Begin with an order; `further` decides what follows it, None: nothing."""
        self.index = order.index
        self.due: Order | None = order
        "What is to be sampled next; None: the rollout is complete, or an engine failed."
        self.rollout: Rollout | None = None
        "What has been sampled; None once the engine of any rank has failed."
        self._further = further
        self._num_parts = 0

    def add(self, part: Rollout | None, ranks: Ranks) -> None:
        """Add what this rank sampled of the due order, None: its engine failed; all ranks must call this together."""
        self.due = None
        if not ranks.all_true(part is not None):
            self.rollout = None
            return
        assert part is not None
        if self._further is None:
            self.rollout = part
            return
        whole = part if self.rollout is None else self._further.joined(self.rollout, part)
        self.rollout, self.due = self._further.proceed(whole, self._num_parts, ranks)
        self._num_parts += 1


def has_credit(objective: Objective, groups: Sequence[Group]) -> list[bool]:
    """Whether each group gets credit at some ratios; see `objectives.is_idle`."""
    if not groups:
        return []
    return is_idle(objective, rewards_of(groups), facts_of(groups)).logical_not().tolist()


def choose(has_credit: Sequence[bool], number: int) -> list[int]:
    """Choose the places of the first groups with credit, filled up with the first without, in order.

    >>> choose([False, True, False, True, True], 2)
    [1, 3]
    >>> choose([False, True, False, False], 3)
    [0, 1, 2]
    """
    credited_first = sorted(range(len(has_credit)), key=lambda place: not has_credit[place])  # stable
    return sorted(credited_first[:number])
