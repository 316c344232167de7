"""ToldK: each group gets the credits of the k that its prompt tells, through every path that credits take."""

import pytest
import torch

from maxk_lightning.callbacks.checks import check_told
from maxk_lightning.data import PromptTemplate
from maxk_lightning.objectives import (
    GRPO,
    DistinctMaxAtK,
    GroupFacts,
    MaxAtK,
    Objective,
    Staged,
    ToldK,
    WeightedObjectives,
    check_group_size,
    credits_of,
    is_idle,
    largest_k,
    needs_behaviours,
    told_ks,
)

NAN = float("nan")
REWARDS_PN = torch.tensor([[0.0, 1.0, 0.25, 0.5], [1.0, 0.0, 0.0, NAN], [0.5, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
ZEROS_PN = torch.zeros_like(REWARDS_PN)


def test_every_group_gets_the_credits_of_its_own_k() -> None:
    told_ks_P = torch.tensor([1, 2, 4, 2])
    credits_PN = ToldK([4, 1, 2])(REWARDS_PN, ZEROS_PN, told_ks_P)
    for row, alone in enumerate([MaxAtK(1), MaxAtK(2), MaxAtK(4, "loo1"), MaxAtK(2)]):
        expected_N = alone(REWARDS_PN[row : row + 1], ZEROS_PN[row : row + 1])[0]
        torch.testing.assert_close(credits_PN[row], expected_N, rtol=0, atol=0)
    assert credits_PN.dtype == torch.float64


def test_the_mean_over_ks_is_the_gradient_of_the_mixture() -> None:
    objective, ks = ToldK([1, 2, 3]), [1, 2, 3]
    each = [objective(REWARDS_PN, ZEROS_PN, torch.full((4,), k)) for k in ks]
    mixture_PN = WeightedObjectives([MaxAtK(k) for k in ks], [1 / 3] * 3)(REWARDS_PN, ZEROS_PN)
    torch.testing.assert_close(torch.stack(each).mean(0), mixture_PN)


def test_idle_is_what_has_no_credit_at_its_k() -> None:
    rewards_PN = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)
    assert is_idle(ToldK([1, 2]), rewards_PN, GroupFacts(told_ks_P=torch.tensor([1, 2]))).tolist() == [False, True]
    assert (largest_k(ToldK([1, 8, 2])), list(told_ks(ToldK([1, 8]))), list(told_ks(GRPO()))) == (8, [1, 8], [])


def test_what_cannot_be_is_refused() -> None:
    check_group_size(ToldK([1, 2, 4, 8]), 8)
    with pytest.raises(ValueError, match=r"`objective\.k` is 8, but `num_completions` is 4"):
        check_group_size(ToldK([1, 8]), 4)
    with pytest.raises(ValueError, match=r"`ks` is \[2, 2\]"):
        ToldK([2, 2])
    with pytest.raises(ValueError, match="`k` is 0"):
        ToldK([0])
    with pytest.raises(ValueError, match=r"was told 3 tries, `objective\.ks` is \[1, 2\]"):
        credits_of(ToldK([1, 2]), REWARDS_PN, ZEROS_PN, GroupFacts(told_ks_P=torch.tensor([1, 2, 3, 1])))
    with pytest.raises(ValueError, match="needs `told_ks_P`"):
        credits_of(ToldK([1, 2]), REWARDS_PN, ZEROS_PN)
    with pytest.raises(ValueError, match="has a ToldK"):
        Staged([ToldK([1, 2]), MaxAtK(2)], [0.0, 0.5])
    with pytest.raises(ValueError, match=r"the same numbers, not from \[\(1,\), \(1, 2\)\]"):
        WeightedObjectives([ToldK([1, 2]), ToldK([1])], [1.0, 1.0])


def test_a_mixture_gives_every_part_the_facts_that_it_asks_for() -> None:
    behaviours_PN = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1], [2, 1, 0, 2], [0, 1, 1, 3]])
    told_ks_P = torch.tensor([1, 2, 2, 1])
    facts = GroupFacts(behaviours_PN=behaviours_PN, told_ks_P=told_ks_P)
    parts: list[Objective] = [ToldK([1, 2]), DistinctMaxAtK(2, 0.5, 0.5), GRPO(), ToldK([1, 2], tells=True)]
    mixture = WeightedObjectives(parts, [1.0, 2.0, 3.0, 4.0])
    assert (list(told_ks(mixture)), needs_behaviours(mixture), largest_k(mixture)) == ([1, 2], True, 2)
    expected_PN = (
        5 * ToldK([1, 2])(REWARDS_PN, ZEROS_PN, told_ks_P)
        + 2 * DistinctMaxAtK(2, 0.5, 0.5)(REWARDS_PN, ZEROS_PN, behaviours_PN)
        + 3 * GRPO()(REWARDS_PN, ZEROS_PN)
    )
    torch.testing.assert_close(credits_of(mixture, REWARDS_PN, ZEROS_PN, facts), expected_PN, rtol=1e-12, atol=1e-12)
    nested = WeightedObjectives([mixture, GRPO()], [1.0, -3.0])
    nested_PN = credits_of(nested, REWARDS_PN, ZEROS_PN, facts)
    torch.testing.assert_close(nested_PN, expected_PN - 3 * GRPO()(REWARDS_PN, ZEROS_PN), rtol=1e-12, atol=1e-12)
    only_told = WeightedObjectives([ToldK([1, 2])], [1.0])
    assert not needs_behaviours(only_told)
    told_PN = ToldK([1, 2])(REWARDS_PN, ZEROS_PN, told_ks_P)
    torch.testing.assert_close(credits_of(only_told, REWARDS_PN, ZEROS_PN, facts), told_PN, rtol=0, atol=0)
    check_group_size(mixture, 4)
    with pytest.raises(ValueError, match=r"data\.template needs \{k\}"):
        check_told(mixture, PromptTemplate())


def test_the_template_tells_if_and_only_if_the_objective_does() -> None:
    telling, silent = PromptTemplate(user="{prompt} {k}"), PromptTemplate()
    check_told(ToldK([1, 2]), telling)
    check_told(ToldK([1, 2], tells=False), silent)
    check_told(MaxAtK(2), telling)
    with pytest.raises(ValueError, match=r"data\.template needs \{k\}"):
        check_told(ToldK([1, 2]), silent)
    with pytest.raises(ValueError, match=r"data\.template must hold no \{k\}"):
        check_told(ToldK([1, 2], tells=False), telling)
