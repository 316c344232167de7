"""Micro-batches by tokens: nothing is lost, the limit holds, and neither gradient nor log knows of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import (
    GRPO,
    DistinctMaxAtK,
    ExactMaxAtK,
    ExactRatios,
    MaxAtK,
    Objective,
    OffPolicyMaxAtK,
    UniquenessWeighted,
)
from maxk_lightning.training.batch import to_batch
from maxk_lightning.training.micro_batches import cut_by_prompts, cut_by_tokens
from tests.support.fakes import BehavingReward
from tests.support.groups import make_group, make_groups
from tests.training.test_step import train


@pytest.mark.parametrize("max_row_tokens", [None, 1, 40])
@pytest.mark.parametrize("max_tokens", [1, 50, 120, 400, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_cuts_hold_every_completion_once_and_keep_the_limit(
    seed: int, max_tokens: int, max_row_tokens: int | None
) -> None:
    groups = make_groups(seed, num_groups=7)
    cut = cut_by_tokens(groups, max_tokens, max_row_tokens)
    assert sorted(g.problem.id for g in [*cut.split, *(g for m in cut.whole for g in m)]) == [f"g{i}" for i in range(7)]
    assert all(group in groups for micro_batch in cut.whole for group in micro_batch)
    for micro_batch in cut.whole:
        assert to_batch(micro_batch, max_row_tokens).rows.input_ids_RL.numel() <= max_tokens
    parts = iter(cut.parts)
    for group, num_parts in zip(cut.split, cut.num_parts, strict=True):
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
    groups = [make_group(f"g{i}", 10, [length] * 2) for i, length in enumerate([5, 100, 6, 101])]
    cut = cut_by_tokens(groups, 450, max_row_tokens=1)
    assert [[group.problem.id for group in micro_batch] for micro_batch in cut.whole] == [["g3", "g1"], ["g2", "g0"]]


def test_no_groups_need_no_micro_batch() -> None:
    for cut in (cut_by_tokens([], 10, None), cut_by_prompts([], None), cut_by_prompts([], 2)):
        assert list(cut.whole) == cut.parts == []


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
        pytest.param(
            OffPolicyMaxAtK(k=2, baseline="loo1"),
            {"normalisation": "token", "kl_target": "reference"},
            marks=pytest.mark.slow,  # the quick tests take this normalisation in test_step.py
        ),
        (ExactMaxAtK(k=2), {"normalisation": "constant"}),
        (ExactRatios(DistinctMaxAtK(k=2, weight=0.5, correct_at=0.2)), {"normalisation": "constant"}),
        pytest.param(UniquenessWeighted(), {"normalisation": "constant"}, marks=pytest.mark.slow),
    ],
    ids=["GRPO", "first order", "exact", "behaviours", "uniqueness"],
)
def test_gradients_and_logs_are_those_of_one_large_batch(
    random_policy: str, tmp_path: Path, objective: Objective, options: dict[str, Any]
) -> None:
    """Plain SGD, so that weights differ as gradients do; in the second PPO iteration ratios are no longer 1."""
    assert objective.includes_ratio == (not isinstance(objective, GRPO | UniquenessWeighted))
    options = {"objective": objective, **options}
    log = Log()
    whole = train(random_policy, tmp_path, reward=BehavingReward(), callbacks=[log], module=options)
    assert log.steps[-1]["train/log_ratio_std"] > 0.01
    row_tokens = [to_batch([group]).rows.input_ids_RL.numel() for group in whole.rollout.samples.groups]
    # One completion at a time; some groups split and some not; two groups together.
    for max_tokens in (1, sorted(row_tokens)[1], 2 * max(row_tokens)):
        cut_log = Log()
        sizes = {"tokens_per_micro_batch": max_tokens}
        cut = train(random_policy, tmp_path, reward=BehavingReward(), callbacks=[cut_log], module={**options, **sizes})
        ours_by_name = cut.weights
        for name, weight in whole.weights.items():
            torch.testing.assert_close(ours_by_name[name], weight, atol=1e-6, rtol=1e-4)  # sums in another order
        assert len(cut_log.steps) == len(log.steps) == 2
        for ours, expected in zip(cut_log.steps, log.steps, strict=True):
            # The same rounding, magnified where a diagnostic is a small difference of large numbers.
            assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_behaviours_reach_credits_whole_and_split(random_policy: str, tmp_path: Path) -> None:
    """Where no reward counts as correct, and where all do: the number of behaviours changes the weights."""
    weights = []
    for correct_at in (9.0, 0.0):
        module = {"objective": DistinctMaxAtK(k=2, weight=0.5, correct_at=correct_at)}
        weights.append(train(random_policy, tmp_path, reward=BehavingReward(), module=module).weights)
    best = train(random_policy, tmp_path, reward=BehavingReward(), module={"objective": MaxAtK(k=2)}).weights
    assert all(torch.equal(weights[0][name], weight) for name, weight in best.items())
    assert any(not torch.equal(weights[1][name], weight) for name, weight in best.items())


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.tokens_per_micro_batch is 0"):
        PolicyModule(tokens_per_micro_batch=0)
    with pytest.raises(ValueError, match=r"model\.tokens_per_micro_batch excludes"):
        PolicyModule(tokens_per_micro_batch=100, prompts_per_micro_batch=1)
