"""A stored rollout is the rollout, also through a file and for another number of ranks."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.rollouts.rollout import Group
from maxk_lightning.rollouts.stored import gather_records, groups_of
from maxk_lightning.types import Completion, Problem, Prompt, Score


def _group(problem: Problem, prompt: Prompt, draw: random.Random) -> Group:
    lengths = [draw.randrange(4) for _ in range(3)]
    completions = [
        Completion(
            token_ids=tuple(draw.randrange(50_000) for _ in range(length)),
            logprobs=tuple(-draw.expovariate(1.0) for _ in range(length)),
            entropies=None if draw.random() < 0.1 else tuple(draw.random() for _ in range(length)),
            text="é" * length,
            finish_reason="stop",
        )
        for length in lengths
    ]
    if any(completion.entropies is None for completion in completions):  # an engine tells all or none
        completions = [replace(completion, entropies=None) for completion in completions]
    scores = [Score(reward=draw.random(), verdicts=("passed", "wrong_answer")) for _ in lengths]
    return Group(
        problem=problem, prompt=prompt, completions=completions, scores=[Score(reward=None, verdicts=()), *scores[1:]]
    )


def _data(rank: int, ranks: int) -> PromptDataModule:
    data = PromptDataModule(train=Builtin("train", limit=9), prompts_per_rollout=7, num_ppo_iterations=2)
    data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
    return data


def test_groups_survive_a_file_and_are_dealt_to_any_number_of_ranks(tmp_path: Path) -> None:
    draw = random.Random(0)
    groups = [_group(problem, prompt, draw) for problem, prompt in zip(*_data(0, 1).rollout_prompts(3), strict=True)]
    assert {completion.entropies is None for group in groups for completion in group.completions} == {True, False}
    torch.save(gather_records(groups), tmp_path / "records.pt")
    records = torch.load(tmp_path / "records.pt", weights_only=True)
    for ranks in (1, 2, 3, 9):
        dealt = [groups_of(records[rank::ranks], *_data(rank, ranks).rollout_prompts(3)) for rank in range(ranks)]
        for position, group in enumerate(groups):
            assert dealt[position % ranks][position // ranks] == group  # floats and all


def test_a_rollout_of_other_prompts_is_refused() -> None:
    problems, prompts = _data(0, 1).rollout_prompts(0)
    records = gather_records([_group(*pair, random.Random(0)) for pair in zip(problems, prompts, strict=True)])
    assert records is not None
    with pytest.raises(ValueError, match="prompts are not those of this configuration"):
        groups_of(records, problems[::-1], prompts[::-1])


def test_a_rollout_with_other_optimizer_steps_is_refused() -> None:
    data = _data(0, 1)
    other = PromptDataModule(train=Builtin("train", limit=9), prompts_per_rollout=7, num_ppo_iterations=3)
    data.load_state_dict({"schedule": other._schedule})
    with pytest.raises(ValueError, match="change these at the end of a rollout"):
        data.train_dataloader()
