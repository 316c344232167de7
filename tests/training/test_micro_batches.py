"""Micro-batches by tokens: nothing is lost, the limit holds, and neither gradient nor log knows of them."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO, ExactMaxAtK, Objective, OffPolicyMaxAtK
from maxk_lightning.rollouts.rollout import Group
from maxk_lightning.training.batch import to_batch
from maxk_lightning.training.micro_batches import plan_by_prompts, plan_by_tokens
from maxk_lightning.types import Completion, Problem, Prompt, Score
from tests.support.fakes import LossyReward
from tests.training.test_step import _fit


def _group(name: str, prompt_tokens: int, lengths: list[int]) -> Group:
    completions = [
        Completion(
            token_ids=(7,) * length, logprobs=(0.0,) * length, text=f"{name} {i}", finish_reason="stop", entropies=None
        )
        for i, length in enumerate(lengths)
    ]
    return Group(
        problem=Problem(id=name, prompt="p", tests=()),
        prompt=Prompt(problem_id=name, token_ids=(1,) * prompt_tokens, seed=0),
        completions=completions,
        scores=[Score(reward=float(i), verdicts=()) for i in range(len(lengths))],
    )


def _groups(seed: int, num_groups: int) -> list[Group]:
    random = Random(seed)
    return [
        _group(f"g{i}", random.randint(1, 20), [random.randint(0, 30) for _ in range(6)]) for i in range(num_groups)
    ]


@pytest.mark.parametrize("max_row_tokens", [None, 1, 40])
@pytest.mark.parametrize("max_tokens", [1, 50, 120, 400, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_plans_hold_every_completion_once_and_keep_the_limit(
    seed: int, max_tokens: int, max_row_tokens: int | None
) -> None:
    groups = _groups(seed, num_groups=7)
    plan = plan_by_tokens(groups, max_tokens, max_row_tokens)
    assert sorted(g.problem.id for g in [*plan.split, *(g for m in plan.whole for g in m)]) == [
        f"g{i}" for i in range(7)
    ]
    assert all(group in groups for micro_batch in plan.whole for group in micro_batch)
    for micro_batch in plan.whole:
        assert to_batch(micro_batch, max_row_tokens).rows.input_ids_RL.numel() <= max_tokens
    parts = iter(plan.parts)
    for group, num_parts in zip(plan.split, plan.num_parts, strict=True):
        assert to_batch([group], max_row_tokens).rows.input_ids_RL.numel() > max_tokens
        own = [next(parts) for _ in range(num_parts)]
        assert [c for part in own for c in part.completions] == group.completions
        assert [s for part in own for s in part.scores] == group.scores
        for part in own:
            assert (
                len(part.completions) == 1 or to_batch([part], max_row_tokens).rows.input_ids_RL.numel() <= max_tokens
            )
    assert next(parts, None) is None


def test_similar_lengths_stand_together() -> None:
    groups = [_group(f"g{i}", 10, [length] * 2) for i, length in enumerate([5, 100, 6, 101])]
    plan = plan_by_tokens(groups, 450, max_row_tokens=1)
    assert [[group.problem.id for group in micro_batch] for micro_batch in plan.whole] == [["g3", "g1"], ["g2", "g0"]]


def test_no_groups_need_no_micro_batch() -> None:
    for plan in (plan_by_tokens([], 10, None), plan_by_prompts([], None), plan_by_prompts([], 2)):
        assert list(plan.whole) == plan.parts == []


class Log(Callback):
    """Everything logged, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(
            {name: float(value) for name, value in trainer.callback_metrics.items() if "time/" not in name}
        )


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (GRPO(), {"normalisation": "sequence"}),
        (OffPolicyMaxAtK(k=2, baseline="loo1"), {"normalisation": "token", "kl_target": "reference"}),
        (ExactMaxAtK(k=2), {"normalisation": "constant"}),
    ],
    ids=["GRPO", "first order", "exact"],
)
def test_gradients_and_logs_are_those_of_one_large_batch(
    random_policy: str, tmp_path: Path, objective: Objective, options: dict[str, Any]
) -> None:
    """Plain SGD, so that weights differ as gradients do; in the second PPO iteration ratios are no longer 1."""
    assert objective.includes_ratio == (not isinstance(objective, GRPO))
    options = {"objective": objective, "reward": LossyReward(), "epochs": 1, **options}
    log = Log()
    whole, rollout = _fit(random_policy, tmp_path, callbacks=[log], **options)
    assert log.steps[-1]["train/log_ratio_std"] > 0.01
    row_tokens = [to_batch([group]).rows.input_ids_RL.numel() for group in rollout.groups]
    # One completion at a time; some groups split and some not; two groups together.
    for max_tokens in (1, sorted(row_tokens)[1], 2 * max(row_tokens)):
        pieces_log = Log()
        pieces, _ = _fit(random_policy, tmp_path, callbacks=[pieces_log], tokens_per_micro_batch=max_tokens, **options)
        for name, weight in whole.items():
            torch.testing.assert_close(pieces[name], weight, atol=1e-6, rtol=1e-4)  # float32 sums in another order
        assert len(pieces_log.steps) == len(log.steps) == 2
        for ours, expected in zip(pieces_log.steps, log.steps, strict=True):
            # The same rounding, magnified where a diagnostic is a small difference of large numbers.
            assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.tokens_per_micro_batch is 0"):
        PolicyModule(tokens_per_micro_batch=0)
    with pytest.raises(ValueError, match=r"model\.tokens_per_micro_batch excludes"):
        PolicyModule(tokens_per_micro_batch=100, prompts_per_micro_batch=1)
