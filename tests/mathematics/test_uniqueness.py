"""UniquenessWeighted against its definition, sample by sample; behaviours reach it like any objective that asks."""

from math import isnan, nan
from statistics import fmean, stdev

import pytest
import torch

from maxk_lightning.objectives import (
    GRPO,
    GroupFacts,
    MaxAtK,
    UniquenessWeighted,
    WeightedObjectives,
    check_group_size,
    credits_of,
    is_idle,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 against float64
# rewards and behaviours: ties, negative rewards, unknown behaviours, one cluster, right and wrong ones alike
GROUPS = [
    ([1.0, 0.0], [0, 1]),
    ([1.0, 0.0, 1.0, 0.0, 1.0], [0, 1, 0, 1, 0]),
    ([1.0, 0.0, 1.0, 0.5, 1.0, 0.0], [0, 1, 2, 1, 0, 0]),
    ([1.0, 2.0, -0.5, 1.0, 3.0, 2.0], [-1, 1, -1, 3, -1, 1]),
    ([0.25, 0.5, 0.75], [4, 4, 4]),
    ([nan, 1.0, 0.5, nan, 1.0, 0.0, 0.25, 0.0], [0, 1, 1, 2, 2, 0, 0, 2]),
    ([0.3, 0.3, 0.3], [0, 0, 1]),
    ([nan, 1.0, nan], [0, 0, 0]),
]


def brute(rewards: list[float], behaviours: list[int], alpha: float) -> list[float]:
    present = [i for i, reward in enumerate(rewards) if not isnan(reward)]
    values = [rewards[i] for i in present]
    spread = stdev(values) if len(set(values)) > 1 else 1.0
    credits = [0.0] * len(rewards)
    for i in present:
        alike = [j for j in present if j == i or behaviours[j] == behaviours[i] >= 0]
        credits[i] = (rewards[i] - fmean(values)) / spread / len(alike) ** alpha / len(present)
    return credits


def credits_N(rewards: list[float], behaviours: list[int], alpha: float) -> torch.Tensor:
    rewards_PN = torch.tensor([rewards])
    credits_PN = UniquenessWeighted(alpha)(
        rewards_PN.double(), torch.zeros_like(rewards_PN), torch.tensor([behaviours])
    )
    assert credits_PN.dtype == torch.float64
    return credits_PN[0]


@pytest.mark.parametrize(("rewards", "behaviours"), GROUPS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_credits_are_advantages_over_the_number_of_samples_alike(
    rewards: list[float], behaviours: list[int], alpha: float
) -> None:
    expected_N = torch.tensor(brute(rewards, behaviours, alpha), dtype=torch.float64)
    torch.testing.assert_close(credits_N(rewards, behaviours, alpha), expected_N, **EXACT)


@pytest.mark.parametrize(("rewards", "behaviours"), GROUPS)
def test_at_zero_it_is_grpo_and_in_one_cluster_of_n_an_nth_of_it(rewards: list[float], behaviours: list[int]) -> None:
    rewards_PN = torch.tensor([rewards], dtype=torch.float64)
    grpo_N = GRPO()(rewards_PN, torch.zeros_like(rewards_PN))[0]
    torch.testing.assert_close(credits_N(rewards, behaviours, 0.0), grpo_N, **EXACT)
    num_samples = int(rewards_PN.isnan().logical_not().sum())
    torch.testing.assert_close(credits_N(rewards, [3] * len(rewards), 1.0), grpo_N / num_samples, **EXACT)
    torch.testing.assert_close(credits_N(rewards, [-1] * len(rewards), 1.0), grpo_N, **EXACT)


def test_every_kind_of_sample_counts_once_at_one_and_a_rare_right_one_most() -> None:
    rewards, behaviours = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 0, 1, 2, 2]
    credited_N = credits_N(rewards, behaviours, 1.0)
    grpo_N = credits_N(rewards, behaviours, 0.0)
    for kind in (0, 1, 2):
        members = torch.tensor(behaviours) == kind
        assert credited_N[members].sum() == pytest.approx(grpo_N[members].mean().item(), abs=1e-12)
    assert credited_N[3] == grpo_N.max() > credited_N[0] > 0 > credited_N[4]


def test_numbers_and_order_of_behaviours_and_the_groups_around_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_PN = torch.randint(0, 3, (50, 8), generator=generator).double() / 2
    behaviours_PN = torch.randint(-1, 4, (50, 8), generator=generator)
    zeros_PN = torch.zeros_like(rewards_PN)
    credits_PN = UniquenessWeighted(0.7)(rewards_PN, zeros_PN, behaviours_PN)
    renamed_PN = torch.where(behaviours_PN >= 0, 9 - behaviours_PN, -1)
    order = torch.randperm(8, generator=generator)
    moved_PN = UniquenessWeighted(0.7)(rewards_PN[:, order], zeros_PN, renamed_PN[:, order])
    torch.testing.assert_close(moved_PN, credits_PN[:, order], **EXACT)
    alone_PN = torch.cat(
        [UniquenessWeighted(0.7)(*(x[p : p + 1] for x in (rewards_PN, zeros_PN, behaviours_PN))) for p in range(50)]
    )
    torch.testing.assert_close(alone_PN, credits_PN, rtol=0.0, atol=0.0)


def test_ratios_are_left_to_the_loss_and_equal_rewards_are_idle_whatever_behaves() -> None:
    rewards_PN, behaviours_PN = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), torch.tensor([[0, 1, 2], [0, 0, 0]])
    objective = UniquenessWeighted()
    assert is_idle(objective, rewards_PN, GroupFacts(behaviours_PN=behaviours_PN)).tolist() == [True, False]
    mixture = WeightedObjectives([objective, MaxAtK(2)], [2.0, 1.0])
    ratios_PN = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    expected_PN = 2 * objective(rewards_PN, torch.zeros(2, 3), behaviours_PN) + MaxAtK(2)(rewards_PN, ratios_PN)
    credits_PN = credits_of(mixture, rewards_PN, ratios_PN, GroupFacts(behaviours_PN=behaviours_PN))
    torch.testing.assert_close(credits_PN, expected_PN, **EXACT)


def test_what_cannot_be_is_refused() -> None:
    for alpha in (-0.1, 1.5, nan):
        with pytest.raises(ValueError, match=f"`alpha` is {alpha}"):
            UniquenessWeighted(alpha)
    with pytest.raises(ValueError, match="UniquenessWeighted needs `behaviours_PN`"):
        UniquenessWeighted()(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"behaviours have shape \(1, 3\), rewards \(1, 2\)"):
        UniquenessWeighted()(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="UniquenessWeighted needs `num_completions` of at least 2"):
        check_group_size(UniquenessWeighted(), 1)
    check_group_size(UniquenessWeighted(), 2)
