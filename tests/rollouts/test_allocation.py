"""How many completions a prompt gets: against brute force, and in whole trainings with groups of different sizes."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.objectives import GRPO, ExactMaxAtK, MaxAtK, Objective
from maxk_lightning.rollouts import Allocation, TransformersEngine
from maxk_lightning.rollouts.allocation import PRIOR_COUNT, allocate, credit_spreads
from maxk_lightning.types import Sampling
from tests.support.fakes import LossyReward
from tests.support.training import fit

SAMPLING = Sampling(num_completions=6, max_new_tokens=8)
ALLOCATION = Allocation(pilot=4, max_completions=10)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_spreads_are_those_of_all_outcomes(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards_PM = torch.randint(0, 3, (3, 4), generator=generator).double() / 2
    rewards_PM[0, 1] = torch.nan
    flat = [value for value in rewards_PM.flatten().tolist() if not math.isnan(value)]
    levels = sorted(set(flat))
    for rewards_M, spread in zip(rewards_PM.tolist(), credit_spreads(rewards_PM, k).tolist(), strict=True):
        own = [value for value in rewards_M if not math.isnan(value)]
        p = [
            (own.count(level) + PRIOR_COUNT * flat.count(level) / len(flat)) / (len(own) + PRIOR_COUNT)
            for level in levels
        ]
        values = [
            sum(
                math.prod(p[other] for other in others) * max([levels[mine], *(levels[other] for other in others)])
                for others in itertools.product(range(len(levels)), repeat=k - 1)
            )
            for mine in range(len(levels))
        ]
        mean = sum(a * b for a, b in zip(p, values, strict=True))
        variance = sum(a * (b - mean) ** 2 for a, b in zip(p, values, strict=True))
        assert spread == pytest.approx(math.sqrt(variance), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_allocation_has_a_smaller_variance(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards_PM = torch.rand((3, 3), generator=generator).round(decimals=1) * (torch.rand((3, 1)) < 0.8)
    spreads = credit_spreads(rewards_PM, 2).tolist()
    for num_further, max_each in ((0, 4), (4, 4), (7, 4), (7, 3), (20, 4)):
        counts = allocate(rewards_PM, 2, num_further, max_each)
        assert max(counts) <= max_each
        assert sum(counts) == min(num_further, 3 * max_each)

        def variance(extra: tuple[int, ...]) -> float:
            return sum(spread**2 / (3 + number) for spread, number in zip(spreads, extra, strict=True))

        others = (extra for extra in itertools.product(range(max_each + 1), repeat=3) if sum(extra) == sum(counts))
        assert variance(tuple(counts)) <= min(map(variance, others)) + 1e-12


def test_equal_prompts_get_equally_many_and_hard_ones_more_than_solved_ones() -> None:
    assert allocate(torch.zeros(3, 4), 2, 7, 9) == [3, 2, 2]
    nothing, some, everything = allocate(torch.tensor([[0.0] * 8, [0.0] * 7 + [1.0], [1.0] * 8]), 4, 24, 99)
    assert some > everything
    assert nothing > everything  # it may still be solved by one of many


def test_numbers_that_do_not_fit_are_refused() -> None:
    for allocation in (Allocation(pilot=2), Allocation(pilot=6), Allocation(pilot=4, max_completions=6)):
        with pytest.raises(ValueError, match=r"rollout\.allocation: must be k < pilot < .* are 2, \d, 6 and \d+"):
            allocation.check(SAMPLING, MaxAtK(k=2))


def _callback(policy: str) -> RolloutCallback:
    return RolloutCallback(TransformersEngine(policy), LossyReward(), SAMPLING, allocation=ALLOCATION)


@pytest.mark.parametrize("objective", [GRPO(), MaxAtK(k=2, baseline="centred"), ExactMaxAtK(k=2)], ids=str)
def test_groups_differ_and_micro_batches_do_not_change_the_run(
    random_policy: str, tmp_path: Path, objective: Objective
) -> None:
    """Each sample is drawn once, the mean is as ordered, and no cut of uneven groups changes the weights."""
    options = {"objective": objective, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.5)}
    whole = fit(random_policy, tmp_path, epochs=1, rollout=_callback(random_policy), module=options)
    groups = whole.rollout.samples.groups
    sizes = [len(group.completions) for group in groups]
    assert sum(sizes) == 6 * len(groups)
    assert len(set(sizes)) > 1
    assert min(sizes) >= 4
    assert max(sizes) <= 10
    for group in groups:
        assert len(group.scores) == len(group.completions)
        long = [completion.token_ids for completion in group.completions if len(completion.token_ids) > 3]
        assert len(set(long)) == len(long)  # no seed was used twice
    assert whole.rollout.samples.rewards_PN.shape == (len(groups), 10)
    for cut in ({"prompts_per_micro_batch": 1}, {"tokens_per_micro_batch": 60}, {"max_row_tokens": 1}):
        callback = _callback(random_policy)
        weights = fit(random_policy, tmp_path, epochs=1, rollout=callback, module={**options, **cut}).weights
        for name, weight in whole.weights.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-4)  # float32 sums in another order


def test_refill_and_allocation_exclude_each_other(random_policy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.allocation and data\.refill exclude each other"):
        fit(random_policy, tmp_path, rollout=_callback(random_policy), data={"refill": 1})
