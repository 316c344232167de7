"""How many completions each prompt of a rollout gets: few for a pilot, the rest where the max@k gradient is noisiest.

Legend: P prompts, M completions of the pilot, L levels of reward.
"""

import heapq
import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maxk_lightning.objectives import Objective, largest_k, largest_subset
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, extended
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Sampling

PRIOR_COUNT = 1.0
"Weight of the rewards of the whole rollout beside those of a prompt's own pilot, in samples."


@dataclass(frozen=True, kw_only=True)  # no slots: see `types.Sampling`
class Allocation:
    """Sample a pilot for every prompt, then the rest of the rollout's completions where they are worth most."""

    pilot: int = 4
    "Completions that every prompt gets; above the objective's k, below `rollout.sampling.num_completions`."
    max_completions: int = 64
    "Most completions that a prompt gets; above `rollout.sampling.num_completions`, the mean."

    def check(self, sampling: Sampling, objective: Objective) -> None:
        """Refuse numbers that do not fit together.

        Raises:
            ValueError: the pilot, the mean or the bound is not above the one before it, or the pilot not above k.
        """
        mean, k = sampling.num_completions, largest_subset(objective)
        if not k < self.pilot < mean < self.max_completions:
            raise ValueError(
                "rollout.allocation: must be k < pilot < rollout.sampling.num_completions < max_completions, are "
                f"{k}, {self.pilot}, {mean} and {self.max_completions}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocator:
    """The allocation of one rollout."""

    index: int
    "Number of the rollout."
    allocation: Allocation
    "Bounds of every prompt."
    sampling: Sampling
    "Settings of the rollout; its number of completions is the mean over prompts."
    objective: Objective
    "Objective in force for this rollout."

    def proceed(self, rollout: Rollout, num_parts: int, ranks: Ranks) -> tuple[Rollout, Order | None]:
        """Return the pilot and single completions to sample after it, or the whole rollout; see `refill.Further`."""
        return rollout, self._after(rollout, ranks) if num_parts == 0 else None

    def _after(self, pilot: Rollout, ranks: Ranks) -> Order:
        groups = pilot.samples.groups
        rewards = ranks.gather([group.rewards for group in groups])
        num_further = len(rewards) * (self.sampling.num_completions - self.allocation.pilot)
        max_each = self.allocation.max_completions - self.allocation.pilot
        rewards_PM = torch.tensor(rewards, dtype=torch.float64)
        counts = ranks.own(allocate(rewards_PM, largest_k(self.objective), num_further, max_each))
        owners = [group for group, number in zip(groups, counts, strict=True) for _ in range(number)]
        numbers = [number for count in counts for number in range(count)]
        prompts = [
            replace(group.prompt, seed=_seed(group, number)) for group, number in zip(owners, numbers, strict=True)
        ]
        return Order(
            index=self.index,
            problems=[group.problem for group in owners],
            prompts=prompts,
            sampling=replace(self.sampling, num_completions=1),
        )

    def joined(self, rollout: Rollout, part: Rollout) -> Rollout:
        """Join the pilot and what was sampled after it into whole groups."""
        singles = {single.prompt.seed: single for single in part.samples.groups}
        groups = []
        for group in rollout.samples.groups:
            seeds = (_seed(group, number) for number in itertools.count())
            more = [singles[seed] for seed in itertools.takewhile(singles.__contains__, seeds)]
            groups.append(
                replace(
                    group,
                    completions=[*group.completions, *(single.completions[0] for single in more)],
                    scores=[*group.scores, *(single.scores[0] for single in more)],
                )
            )
        sampling = replace(self.sampling, num_completions=self.allocation.max_completions)
        return extended(rollout, part, replace(rollout.samples, groups=groups, sampling=sampling))


def allocate(rewards_PM: Tensor, k: int, num_further: int, max_each: int) -> list[int]:
    """Choose the number of further completions of every prompt, given the rewards of its pilot (NaN: lost).

    Neyman's allocation (1934): the variance of the gradient summed over prompts falls most when a prompt gets them in
    proportion to the spread of its samples' max@k credits, `credit_spreads`. Each one in turn goes to the prompt whose
    variance spread^2 / n it lowers most, which is optimal for whole numbers (Fox, 1966); of equals, to the prompt that
    has fewest, then to the first.

    >>> allocate(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]), 2, 9, 9)
    [3, 6, 0]
    """
    spreads = credit_spreads(rewards_PM, k).tolist()
    num_pilot = rewards_PM.shape[1]
    counts = [0] * len(spreads)

    def turn(prompt: int) -> tuple[float, int, int]:
        n = num_pilot + counts[prompt]
        return -(spreads[prompt] ** 2) / (n * (n + 1)), n, prompt

    turns = [turn(prompt) for prompt in range(len(spreads))] if max_each > 0 else []
    heapq.heapify(turns)
    for _ in range(num_further):
        if not turns:
            break
        prompt = heapq.heappop(turns)[2]
        counts[prompt] += 1
        if counts[prompt] < max_each:
            heapq.heappush(turns, turn(prompt))
    return counts


def credit_spreads(rewards_PM: Tensor, k: int) -> Tensor:
    """Estimate the standard deviation over a prompt's samples of E[max(r, best of k - 1 others)], float64 [P].

    The levels of reward are those seen in the rollout. A prompt's probabilities of them are the posterior mean of a
    Dirichlet distribution: its own counts, plus `PRIOR_COUNT` samples of what all prompts got. So a prompt whose pilot
    earned nothing may still earn something, which makes a large difference to its max@k; one that earns the largest
    reward most of the time has nothing left to gain.
    """
    rewards_PM = rewards_PM.to(torch.float64)
    is_present_PM = rewards_PM.isnan().logical_not()
    levels_L = torch.unique(rewards_PM[is_present_PM])  # ascending
    if len(levels_L) == 0:
        return torch.zeros(len(rewards_PM), dtype=torch.float64)
    counts_PL = (rewards_PM.unsqueeze(-1) == levels_L).sum(1).to(torch.float64)
    prior_L = counts_PL.sum(0) / counts_PL.sum()
    posterior_PL = (counts_PL + PRIOR_COUNT * prior_L) / (counts_PL.sum(1, keepdim=True) + PRIOR_COUNT)
    below_PL = posterior_PL.cumsum(1).clamp(max=1.0) ** (k - 1)  # the best of the others is at most this level
    steps_PL = torch.nn.functional.pad(below_PL.diff(dim=1), (1, 0)) * levels_L  # that it is this level, times it
    above_PL = steps_PL.flip(1).cumsum(1).flip(1) - steps_PL
    values_PL = levels_L * below_PL + above_PL
    mean_P1 = (posterior_PL * values_PL).sum(1, keepdim=True)
    variance_P: Tensor = (posterior_PL * (values_PL - mean_P1).square()).sum(1)
    return variance_P.sqrt()


def pilot_of(sampling: Sampling, allocation: Allocation | None) -> Sampling:
    """Return the settings that a rollout begins with."""
    return sampling if allocation is None else replace(sampling, num_completions=allocation.pilot)


def _seed(group: Group, number: int) -> int:
    """Seed of a group's further completion: no sample of a run shares random numbers with another."""
    return derive_seed(group.prompt.seed, "further", number)
