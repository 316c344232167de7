"""A stored rollout is the rollout, also through a file and for another number of ranks."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, Samples
from maxk_lightning.rollouts.stored import from_state, to_state
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score, Segment

SAMPLING = Sampling(num_completions=3, stop=("\n```", "é"))


def _group(number: int, draw: random.Random) -> Group:
    lengths = [draw.randrange(4) for _ in range(3)]
    completions = [
        Completion(
            token_ids=tuple(draw.randrange(50_000) for _ in range(length)),
            logprobs=tuple(-draw.expovariate(1.0) for _ in range(length)),
            entropies=None if draw.random() < 0.1 else tuple(draw.random() for _ in range(length)),
            text="é" * length,
            finish_reason="stop",
            segments=(Segment(0, 6), Segment(1, 8)) if length > 1 else (),
        )
        for length in lengths
    ]
    if any(completion.entropies is None for completion in completions):  # an engine tells all or none
        completions = [replace(completion, entropies=None) for completion in completions]
    scores = [
        Score(reward=draw.random(), verdicts=("passed", "wrong_answer"), behaviour=draw.choice([None, 3, "f00"]))
        for _ in lengths
    ]
    return Group(
        problem=Problem(id=f"p{number}", prompt="p", tests=()),
        prompt=Prompt(problem_id=f"p{number}", token_ids=tuple(range(number + 1)), seed=number),
        completions=completions,
        scores=[Score(reward=None, verdicts=(), missing_cause="worker_lost"), *scores[1:]],
    )


def _rollout(groups: list[Group]) -> Rollout:
    samples = Samples(groups=groups, sampling=SAMPLING)
    return Rollout(
        samples=samples, generate_s=1.5, score_s=0.5, version=6, sync_s=0.25, logprob_gap=1e-6, sequence_gap=1e-5
    )


def _order(groups: list[Group], ranks: Ranks) -> Order:
    own = ranks.own(groups)
    problems, prompts = [group.problem for group in own], [group.prompt for group in own]
    return Order(index=3, problems=problems, prompts=prompts, sampling=SAMPLING)


def test_rollouts_survive_a_file_and_are_dealt_to_any_number_of_ranks(tmp_path: Path) -> None:
    draw = random.Random(0)
    groups = [_group(number, draw) for number in range(7)]
    assert {completion.entropies is None for group in groups for completion in group.completions} == {True, False}
    torch.save(to_state(_rollout(groups), Ranks()), tmp_path / "rollout.pt")
    state = torch.load(tmp_path / "rollout.pt", weights_only=True)
    for num_ranks in (1, 2, 3, 9):
        dealt = [
            from_state(state, _order(groups, ranks), ranks)
            for ranks in (Ranks(rank, num_ranks) for rank in range(num_ranks))
        ]
        for place, group in enumerate(groups):
            assert dealt[place % num_ranks].samples.groups[place // num_ranks] == group  # floats and all
        assert all(replace(share, samples=Samples(groups=[], sampling=SAMPLING)) == _rollout([]) for share in dealt)


def test_a_rollout_of_other_prompts_is_refused() -> None:
    groups = [_group(number, random.Random(0)) for number in range(4)]
    state = to_state(_rollout(groups), Ranks())
    with pytest.raises(ValueError, match="prompts are not those of this configuration"):
        from_state(state, _order(groups[::-1], Ranks()), Ranks())
