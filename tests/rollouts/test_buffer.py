"""The buffer serves every group once per PPO iteration, on any number of ranks."""

from dataclasses import replace

import pytest
import torch

from maxk_lightning.rollouts.buffer import RolloutBuffer
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Rollout, Samples
from maxk_lightning.types import Problem, Prompt, Sampling, Score


def _group(number: int, *rewards: float | None) -> Group:
    return Group(
        problem=Problem(id=str(number), prompt="p", tests=()),
        prompt=Prompt(problem_id=str(number), token_ids=(1,), seed=number),
        completions=[],
        scores=[Score(reward=reward, verdicts=()) for reward in rewards or (0.0,)],
    )


def _rollout(num_groups: int) -> Rollout:
    samples = Samples(groups=[_group(number) for number in range(num_groups)], sampling=Sampling())
    return Rollout(samples=samples, generate_s=1.0, score_s=1.0)


def _served(buffer: RolloutBuffer) -> list[list[str]]:
    return [[group.prompt.problem_id for group in buffer[index].groups] for index in range(len(buffer))]


def test_a_buffer_serves_every_group_once_per_ppo_iteration() -> None:
    buffer = RolloutBuffer(num_groups=8, groups_per_step=2, num_iterations=3, seed=1)
    buffer.fill(_rollout(8))
    served = _served(buffer)
    assert len(served) == 12
    for iteration in range(3):
        steps = served[4 * iteration : 4 * iteration + 4]
        assert sorted(steps) == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]
    assert served[:4] != served[4:8] or served[4:8] != served[8:]
    buffer.fill(_rollout(8), index=1)
    assert _served(buffer) != served  # every rollout has orders of its own
    uneven = RolloutBuffer(num_groups=5, groups_per_step=2)
    uneven.fill(_rollout(5))
    assert _served(uneven) == [["0", "1"], ["2", "3"], ["4"]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("num_groups", "groups_per_step"), [(1, 1), (6, 3), (5, 2), (8, 4), (3, 7)])
def test_ranks_share_each_step_however_uneven(num_groups: int, groups_per_step: int, world_size: int) -> None:
    """Without an exchange, as in evaluation: each keeps what it sampled."""
    served: list[list[list[str]]] = []
    for rank in range(world_size):
        whole, ranks = _rollout(num_groups), Ranks(rank, world_size)
        buffer = RolloutBuffer(num_groups, groups_per_step, num_iterations=2, ranks=ranks)
        own = replace(whole.samples, groups=ranks.own(whole.samples.groups))
        assert len(own.groups) == ranks.num_own(num_groups)
        buffer.fill(replace(whole, samples=own))
        served.append(_served(buffer))
    alone = RolloutBuffer(num_groups, groups_per_step, num_iterations=2)
    alone.fill(_rollout(num_groups))
    for expected, shares in zip(_served(alone), zip(*served, strict=True), strict=True):
        assert sorted(problem for share in shares for problem in share) == sorted(expected)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_resumed_buffer_leaves_out_what_was_served() -> None:
    whole, resumed = (RolloutBuffer(num_groups=6, groups_per_step=2, num_iterations=3, seed=4) for _ in range(2))
    whole.fill(_rollout(6), index=2)
    resumed.fill(_rollout(6), index=2, num_done=5)
    assert len(resumed) == len(whole) == 9  # Lightning counts from the start of the epoch
    assert [resumed[index].groups for index in range(4)] == [whole[index].groups for index in range(5, 9)]


def test_rewards_of_lost_samples_are_nan_and_those_that_smaller_groups_lack() -> None:
    groups = [_group(0, None, 0.5), _group(1, 1.0)]
    expected = torch.tensor([[torch.nan, 0.5, torch.nan], [1.0, torch.nan, torch.nan]], dtype=torch.float64)
    samples = Samples(groups=groups, sampling=Sampling(num_completions=3))
    torch.testing.assert_close(samples.rewards_PN, expected, equal_nan=True)
