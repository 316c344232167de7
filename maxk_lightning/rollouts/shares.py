"""Which rank trains on which groups. Never changes the loss, whose parts are summed over ranks."""

from collections.abc import Callable, Sequence
from itertools import count

from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, lean


def assign(loads: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Choose the indices of each rank's loads: the largest first, each to the rank that has least (Graham, 1969).

    The largest sum is at most 4/3 of the least possible. A rank takes its loads in the order in which they were given,
    and none where there are too few.

    >>> assign([5, 4, 3, 3, 1], 2)
    [[0, 3], [1, 2, 4]]
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    sums = [0] * num_ranks
    for index in sorted(range(len(loads)), key=lambda index: -loads[index]):
        rank = sums.index(min(sums))
        shares[rank].append(index)
        sums[rank] += loads[index]
    return [sorted(share) for share in shares]


def training_tokens(group: Group) -> int:
    """Count the tokens of a group in a training step, where its completions share one copy of their prompt."""
    return len(group.prompt.token_ids) + sum(len(completion.token_ids) for completion in group.completions)


def dealt(replayed: Sequence[Group], num_steps: int) -> list[Sequence[Group]]:
    """Deal the replayed groups to the optimizer steps: one to each in turn."""
    return [replayed[step::num_steps] for step in range(num_steps)]


def share_out(
    groups: Sequence[Group],
    groups_per_step: int,
    num_ranks: int,
    idle: Sequence[bool] | None = None,
    replayed: Sequence[Group] = (),
) -> list[list[list[Group]]]:
    """List for each rank its groups of every step, given the whole rollout in the order of the prompt stream.

    The groups of a step are the same on any number of ranks; their tokens decide which rank has which. Idle groups cost
    nothing. Replayed groups are `dealt` to the steps.
    """
    starts = range(0, len(groups), groups_per_step)
    tokens = [training_tokens(group) for group in groups]
    loads = [0 if rests else load for load, rests in zip(tokens, idle or [False] * len(groups), strict=True)]
    shares: list[list[list[Group]]] = [[] for _ in range(num_ranks)]
    for start, further in zip(starts, dealt(replayed, len(starts)), strict=True):
        step = slice(start, start + groups_per_step)
        members = [*groups[step], *further]
        loads_of_step = [*loads[step], *(training_tokens(group) for group in further)]
        for rank, indices in enumerate(assign(loads_of_step, num_ranks)):
            shares[rank].append([members[index] for index in indices])
    return shares


def exchange(
    groups: Sequence[Group],
    groups_per_step: int,
    ranks: Ranks,
    idle: Callable[[Sequence[Group]], Sequence[bool]] | None = None,
    chosen: Sequence[int] | None = None,
    replayed: Sequence[Group] = (),
) -> list[list[Group]]:
    """Exchange the groups that this rank sampled for its groups of every step; all ranks must call this together.

    Tests and columns are not exchanged, nor are groups that are not `chosen`, see `Rollout`. All ranks know the
    replayed ones.
    """
    own = {
        place: lean(group)
        for place, group in zip(count(ranks.rank, ranks.world_size), groups, strict=False)
        if chosen is None or place in chosen
    }
    by_place = {place: group for share in ranks.gather_each(own) for place, group in share.items()}
    everything = [by_place[place] for place in sorted(by_place)]
    is_idle = None if idle is None else idle(everything)
    return share_out(everything, groups_per_step, ranks.world_size, is_idle, replayed)[ranks.rank]
