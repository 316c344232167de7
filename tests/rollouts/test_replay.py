"""Which groups of earlier rollouts are kept, drawn and dropped, on any number of ranks and over a checkpoint."""

import io
from collections.abc import Sequence

import pytest
import torch

from maxk_lightning.objectives import GRPO, MaxAtK
from maxk_lightning.rollouts import Replay
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.replay import ReplayBuffer
from maxk_lightning.rollouts.rollout import Group, Rollout, Samples
from maxk_lightning.rollouts.shares import share_out
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score, TestCase

SAMPLING = Sampling(num_completions=4, max_new_tokens=8)
OBJECTIVE = MaxAtK(k=2, baseline="centred")


def _group(name: str, rewards: Sequence[float]) -> Group:
    return Group(
        problem=Problem(id=name, prompt="?", tests=[TestCase(input="1", output="2")], columns={"a": 1}),
        prompt=Prompt(problem_id=name, token_ids=(1, 2, len(name)), seed=len(name), prefill="x"),
        completions=[
            Completion(token_ids=(3, i), logprobs=(-0.5, -0.25 * i), entropies=None, text=str(i), finish_reason="stop")
            for i in range(len(rewards))
        ],
        scores=[Score(reward=reward, verdicts=()) for reward in rewards],
    )


def _rollout(groups: Sequence[Group], version: int = 0) -> Rollout:
    return Rollout(samples=Samples(groups=groups, sampling=SAMPLING), generate_s=0.0, score_s=0.0, version=version)


def _names(buffer: ReplayBuffer) -> list[str]:
    return [kept.group.problem.id for kept in buffer.drawn]


def _drawn(buffer: ReplayBuffer, step: int = 1, index: int = 0) -> list[str]:
    buffer.draw(index, step, OBJECTIVE)
    return _names(buffer)


def test_only_groups_with_credit_are_kept_and_tests_are_not() -> None:
    buffer = ReplayBuffer(Replay(share=0.5), num_fresh=100, seed=0)
    buffer.keep(_rollout([_group("a", [0, 0, 0, 0]), _group("bb", [0, 1, 0, 0])]), OBJECTIVE, Ranks())
    assert _drawn(buffer) == ["bb"]
    assert buffer.drawn[0].group.problem.tests == ()
    assert buffer.drawn[0].group.problem.columns == {}


def test_the_share_is_of_all_groups_that_are_trained_on() -> None:
    buffer = ReplayBuffer(Replay(share=0.25), num_fresh=6, seed=0)
    buffer.keep(_rollout([_group("x" * i, [0, 0, 0, 1]) for i in range(1, 9)]), OBJECTIVE, Ranks())
    assert len(_drawn(buffer)) == 2
    with pytest.raises(ValueError, match=r"rollout\.replay\.share \(0\.25\) .* data\.prompts_per_rollout \(1\)"):
        ReplayBuffer(Replay(share=0.25), num_fresh=1, seed=0)


def test_too_old_and_used_up_groups_are_dropped() -> None:
    buffer = ReplayBuffer(Replay(share=0.5, max_age=10, max_uses=2), num_fresh=100, seed=0)
    buffer.keep(_rollout([_group("a", [0, 0, 0, 1])], version=0), OBJECTIVE, Ranks())
    buffer.keep(_rollout([_group("bb", [0, 0, 0, 1])], version=5), OBJECTIVE, Ranks())
    assert _drawn(buffer, step=10) == ["a", "bb"]
    assert _drawn(buffer, step=11) == ["bb"]
    assert _drawn(buffer, step=12) == []


def test_a_group_without_credit_by_a_later_objective_is_dropped() -> None:
    buffer = ReplayBuffer(Replay(share=0.5), num_fresh=100, seed=0)
    buffer.keep(_rollout([_group("a", [0, 1, 1, 1]), _group("bb", [0, 0, 0, 1])]), GRPO(), Ranks())
    assert _drawn(buffer) == ["bb"]  # every two samples of "a" have a best reward of 1


def test_of_too_many_the_groups_with_the_smallest_credits_go() -> None:
    buffer = ReplayBuffer(Replay(share=0.5, capacity=2), num_fresh=100, seed=0)
    rewards = {"a": [0, 0, 0, 1], "bb": [0, 0, 0, 0.1], "ccc": [0, 0, 0, 0.5]}
    buffer.keep(_rollout([_group(*item) for item in rewards.items()]), OBJECTIVE, Ranks())
    assert _drawn(buffer) == ["a", "ccc"]
    equals = ReplayBuffer(Replay(share=0.5, capacity=2), num_fresh=100, seed=0)
    equals.keep(_rollout([_group("x" * i, [0, 0, 0, 1]) for i in range(1, 5)]), OBJECTIVE, Ranks())
    assert _drawn(equals) == ["xxx", "xxxx"]  # of equals the oldest


def test_what_is_drawn_depends_on_seed_and_rollout_alone_and_all_are_drawn_in_turn() -> None:
    groups = [_group("x" * i, [0, 0, 0, 1]) for i in range(1, 9)]
    drawn = []
    for seed in (0, 0, 1):
        buffer = ReplayBuffer(Replay(share=0.25, max_uses=100), num_fresh=6, seed=seed)
        buffer.keep(_rollout(groups), OBJECTIVE, Ranks())
        drawn.append([_drawn(buffer, index=index) for index in range(60)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({name for names in drawn[0] for name in names}) == 8


def test_a_checkpoint_holds_all_of_it() -> None:
    buffer = ReplayBuffer(Replay(share=0.25), num_fresh=6, seed=0)
    buffer.keep(_rollout([_group("x" * i, [0, 0, 0.5, 1]) for i in range(1, 9)], version=3), OBJECTIVE, Ranks())
    drawn = _drawn(buffer, step=5)
    file = io.BytesIO()
    torch.save(buffer.state(), file)
    file.seek(0)
    again = ReplayBuffer(Replay(share=0.25), num_fresh=6, seed=0)
    again.load_state(torch.load(file, weights_only=True))
    assert _names(again) == drawn
    for ours, theirs in zip(again.drawn, buffer.drawn, strict=True):
        assert (ours.version, ours.num_uses) == (theirs.version, theirs.num_uses) == (3, 1)
        assert ours.group.prompt == theirs.group.prompt
        assert ours.group.completions == theirs.group.completions
        assert ours.group.rewards == theirs.group.rewards
    for index in range(1, 4):
        assert _drawn(again, 5, index) == _drawn(buffer, 5, index)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_replayed_groups_are_dealt_to_the_steps_whatever_the_number_of_ranks(num_ranks: int) -> None:
    fresh = [_group("x" * i, [0, 0, 0, 1]) for i in range(1, 7)]
    replayed = [_group("y" * i, [0, 0, 0, 1]) for i in range(1, 4)]
    shares = share_out(fresh, 3, num_ranks, None, replayed)
    steps = [sorted(g.problem.id for share in shares for g in share[step]) for step in range(2)]
    assert steps == [["x", "xx", "xxx", "y", "yyy"], ["xxxx", "xxxxx", "xxxxxx", "yy"]]


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"capacity": 0}, {"max_age": 0}, {"max_uses": 0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.replay\.{next(iter(options))} is "):
        Replay(**options)  # type: ignore[arg-type]
