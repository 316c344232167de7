"""Groups are dealt to ranks whole, once each, and evenly by tokens."""

from itertools import product
from random import Random

import pytest

from maxk_lightning.rollouts.shares import assign, share_out, training_tokens
from tests.support.groups import make_groups


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("num_loads", [0, 1, 5, 7, 40])
def test_every_load_is_taken_once_and_the_bound_of_greedy_schedules_holds(num_loads: int, num_ranks: int) -> None:
    draw = Random(num_loads)
    for _ in range(50):
        loads = [draw.choice((1, draw.randrange(1, 1000))) for _ in range(num_loads)]
        shares = assign(loads, num_ranks)
        assert len(shares) == num_ranks
        assert sorted(index for share in shares for index in share) == list(range(num_loads))
        largest = max(sum(loads[index] for index in share) for share in shares)
        # Whoever is busiest had least when it took its last load: at most the mean of all others.
        assert largest <= sum(loads) / num_ranks + (1 - 1 / num_ranks) * max(loads, default=0)


def test_the_busiest_rank_has_at_most_four_thirds_of_the_least_possible() -> None:
    draw = Random(0)
    for num_ranks, num_loads in product((2, 3), (1, 4, 7)):
        for _ in range(5):
            loads = [draw.randrange(1, 30) for _ in range(num_loads)]
            best = min(
                max(sum(load for load, taker in zip(loads, takers, strict=True) if taker == r) for r in takers)
                for takers in product(range(num_ranks), repeat=num_loads)
            )
            largest = max(sum(loads[index] for index in share) for share in assign(loads, num_ranks))
            assert best <= largest <= (4 / 3 - 1 / (3 * num_ranks)) * best


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("groups_per_step", [1, 3, 6])
def test_a_step_has_the_same_groups_on_any_number_of_ranks(groups_per_step: int, num_ranks: int) -> None:
    groups = make_groups(0, 6)
    shares = share_out(groups, groups_per_step, num_ranks)
    steps = list(zip(*shares, strict=True))
    assert len(steps) == 6 // groups_per_step
    for step, parts in enumerate(steps):
        taken = [group for part in parts for group in part]
        expected = groups[step * groups_per_step : (step + 1) * groups_per_step]
        assert sorted(taken, key=groups.index) == expected
        loads = [sum(map(training_tokens, part)) for part in parts]
        assert max(loads) <= sum(loads) / num_ranks + max(map(training_tokens, expected))
