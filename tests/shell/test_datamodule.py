"""Prompt streams, templates and buffers."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from maxk_lightning.data import Builtin, JsonLines, PromptStream, PromptTemplate
from maxk_lightning.datamodule import PromptDataModule, RolloutBuffer
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.types import Problem, Prompt, Sampling, Score, TestCase

PROBLEM = Problem(id="a", prompt="Add {x}.", tests=(TestCase(input="", output=""),))


def test_every_pass_visits_every_problem_once_in_another_order() -> None:
    stream = PromptStream(num_problems=7, seed=3)
    passes = [[stream.index(position) for position in range(7 * p, 7 * p + 7)] for p in range(5)]
    assert all(sorted(visited) == list(range(7)) for visited in passes)
    assert len({tuple(visited) for visited in passes}) == 5
    assert passes[0] != [PromptStream(num_problems=7, seed=4).index(position) for position in range(7)]


def test_the_template_is_the_tokenizer_s_own(random_policy: str) -> None:
    tokenizer = load_tokenizer(random_policy)
    prompt = PromptTemplate(system="Be brief.", user="Q: {prompt}").render(PROBLEM, tokenizer, seed=5)
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: Add {x}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(prompt.token_ids) == expected
    assert (prompt.problem_id, prompt.seed) == ("a", 5)
    with pytest.raises(ValueError, match=r"must contain \{prompt\}"):
        PromptTemplate(user="Solve it.")


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_what_one_rank_sees(random_policy: str, world_size: int) -> None:
    def module(rank: int, ranks: int) -> PromptDataModule:
        data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=11), prompts_per_rollout=8)
        data.setup("fit")
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
        return data

    whole = module(0, 1)
    shares = [module(rank, world_size) for rank in range(world_size)]
    for index in range(4):
        expected = Counter((prompt.problem_id, prompt.seed) for prompt in whole.rollout_prompts(index)[1])
        together = Counter((p.problem_id, p.seed) for share in shares for p in share.rollout_prompts(index)[1])
        assert together == expected
        assert sum(expected.values()) == 8
    names = [prompt.problem_id for prompt in whole.eval_prompts("validate")[1]]
    assert sorted(names) == sorted(p.problem_id for share in shares for p in share.eval_prompts("validate")[1])


def test_no_two_groups_of_a_run_share_a_seed(random_policy: str) -> None:
    data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=3), prompts_per_rollout=4)
    data.setup("fit")
    seeds = [prompt.seed for index in range(20) for prompt in data.rollout_prompts(index)[1]]
    assert len(set(seeds)) == len(seeds) == 80


def _rollout(num_groups: int) -> Rollout:
    prompts = [Prompt(problem_id=str(index), token_ids=(1,), seed=index) for index in range(num_groups)]
    groups = [
        Group(problem=PROBLEM, prompt=prompt, completions=[], scores=[Score(reward=0.0, verdicts=())])
        for prompt in prompts
    ]
    return Rollout(groups=groups, sampling=Sampling(), generate_s=1.0, score_s=1.0)


def test_a_buffer_serves_every_group_once_per_ppo_iteration() -> None:
    buffer = RolloutBuffer(num_groups=8, groups_per_slice=2, num_iterations=3)
    buffer.fill(_rollout(8), seed=1)
    served = [[group.prompt.problem_id for group in buffer[index].groups] for index in range(len(buffer))]
    assert len(served) == 12
    for iteration in range(3):
        slices = served[4 * iteration : 4 * iteration + 4]
        assert sorted(slices) == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]
    assert served[:4] != served[4:8] or served[4:8] != served[8:]
    uneven = RolloutBuffer(num_groups=5, groups_per_slice=2)
    uneven.fill(_rollout(5))
    assert [len(uneven[index].groups) for index in range(len(uneven))] == [2, 2, 1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("num_groups", "groups_per_slice"), [(1, 1), (6, 3), (5, 2), (8, 4), (3, 7)])
def test_ranks_share_each_slice_however_uneven(num_groups: int, groups_per_slice: int, world_size: int) -> None:
    served: list[list[list[str]]] = []
    for rank in range(world_size):
        whole = _rollout(num_groups)
        buffer = RolloutBuffer(num_groups, groups_per_slice, num_iterations=2, rank=rank, world_size=world_size)
        buffer.fill(replace(whole, groups=whole.groups[rank::world_size]), seed=0)
        served.append([[g.prompt.problem_id for g in buffer[index].groups] for index in range(len(buffer))])
    alone = RolloutBuffer(num_groups, groups_per_slice, num_iterations=2)
    alone.fill(_rollout(num_groups), seed=0)
    for index, shares in enumerate(zip(*served, strict=True)):
        expected = [group.prompt.problem_id for group in alone[index].groups]
        assert sorted(problem for share in shares for problem in share) == sorted(expected)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_resumed_buffer_leaves_out_what_was_served() -> None:
    whole, resumed = (RolloutBuffer(num_groups=6, groups_per_slice=2, num_iterations=3) for _ in range(2))
    whole.fill(_rollout(6), seed=4)
    resumed.fill(_rollout(6), seed=4, num_done=5)
    assert len(resumed) == len(whole) == 9  # Lightning counts from the start of the epoch
    assert [resumed[index].groups for index in range(4)] == [whole[index].groups for index in range(5, 9)]


def test_long_prompts_are_left_out_and_counted(random_policy: str, caplog: pytest.LogCaptureFixture) -> None:
    data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=30), max_prompt_tokens=120)
    with caplog.at_level("WARNING", logger="maxk_lightning.datamodule"):
        data.setup("fit")
    kept = len(data.problems["fit"])
    assert 0 < kept < 30
    assert f"left out {30 - kept} of 30 problems" in caplog.text


def test_bad_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.num_ppo_iterations is 0"):
        PromptDataModule(num_ppo_iterations=0)
    with pytest.raises(ValueError, match="limit is 0"):
        JsonLines("x.jsonl", limit=0)


def test_rewards_of_lost_samples_are_nan() -> None:
    group = Group(
        problem=PROBLEM,
        prompt=Prompt(problem_id="a", token_ids=(1,), seed=0),
        completions=[],
        scores=[Score(reward=None, verdicts=("infra_error",)), Score(reward=0.5, verdicts=("passed", "wrong_answer"))],
    )
    rollout = Rollout(groups=[group], sampling=Sampling(), generate_s=1.0, score_s=1.0)
    torch.testing.assert_close(
        rollout.rewards_PN, torch.tensor([[torch.nan, 0.5]], dtype=torch.float64), equal_nan=True
    )
