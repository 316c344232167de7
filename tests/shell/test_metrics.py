"""Metrics against brute force over subsets, under casts, and on two real processes."""

import math
import socket
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from maxk_lightning.metrics import MaxAtK, PassAtK, RealisedMaxAtK, RolloutMetrics, WeightedMean
from maxk_lightning.rollouts.rollout import SAMPLE_VALUES

NAN = math.nan
KS = [1, 2, 4]
# Uneven on purpose: groups of 4, 4, 3, 2, 1 and 0 samples.
GROUPS = [
    [0.0, 0.25, 1.0, 0.5],
    [0.5, 0.5, 0.5, 0.5],
    [NAN, 1.0, 1.0, 0.0],
    [0.75, NAN, NAN, 0.25],
    [NAN, NAN, 0.1, NAN],
    [NAN, NAN, NAN, NAN],
]
REWARDS_PN = torch.tensor(GROUPS, dtype=torch.float64)


def expected(groups: list[list[float]], k: int, correct_at: float | None = None) -> tuple[float, float]:
    """Mean and standard error by enumerating every k-subset of every group that has one."""
    values = []
    for group in groups:
        rewards = [reward for reward in group if not math.isnan(reward)]
        if correct_at is not None:
            rewards = [float(reward >= correct_at) for reward in rewards]
        subsets = list(combinations(rewards, k))
        if subsets:
            values.append(sum(max(subset) for subset in subsets) / len(subsets))
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def assert_matches(
    found: dict[str, Tensor], name: str, groups: list[list[float]], correct_at: float | None = None
) -> None:
    for k in KS:
        mean, stderr = expected(groups, k, correct_at)
        assert found[f"{name}/{k}"].item() == pytest.approx(mean, abs=1e-10)
        assert found[f"{name}_stderr/{k}"].item() == pytest.approx(stderr, abs=1e-10)


def test_max_at_k_matches_enumeration_over_several_updates() -> None:
    metric = MaxAtK(KS)
    metric.update(REWARDS_PN[:2])
    metric.update(REWARDS_PN[2:])
    assert_matches(metric.compute(), "max_at_k", GROUPS)


@pytest.mark.parametrize("correct_at", [1.0, 0.5])
def test_pass_at_k_matches_enumeration(correct_at: float) -> None:
    metric = PassAtK(KS, correct_at=correct_at)
    metric.update(REWARDS_PN)
    assert_matches(metric.compute(), "pass_at_k", GROUPS, correct_at)


def test_forward_gives_the_batch_value_and_accumulates() -> None:
    metric = MaxAtK(KS)
    metric(REWARDS_PN[2:])
    batch = metric(REWARDS_PN[:2])
    assert_matches(batch, "max_at_k", GROUPS[:2])
    assert_matches(metric.compute(), "max_at_k", GROUPS)


def test_a_k_that_no_group_reaches_is_nan_and_one_group_has_no_error() -> None:
    metric = MaxAtK([4, 8])
    metric.update(REWARDS_PN[:1])
    found = metric.compute()
    assert found["max_at_k/4"] == 1.0
    assert all(found[name].isnan() for name in ("max_at_k/8", "max_at_k_stderr/8", "max_at_k_stderr/4"))


def test_realised_values_are_averaged_over_the_groups_that_have_them() -> None:
    metric = RealisedMaxAtK([1, 2, 4])
    metric.update(torch.tensor([[0.25, 0.5, 1.0], [0.75, 1.0, math.nan]]))
    metric.update(torch.tensor([[0.5, 0.0, 0.5], [math.nan, math.nan, math.nan]]))
    metric.update(torch.zeros(0, 3))
    found = metric.compute()
    assert [found[f"realised_max_at_k/{k}"].item() for k in (1, 2, 4)] == [0.5, 0.5, 0.75]
    deviation = math.sqrt((0.25**2 + 0.25**2) / 2)
    assert found["realised_max_at_k_stderr/1"].item() == pytest.approx(deviation / math.sqrt(3))
    with pytest.raises(ValueError, match=r"values_PK has shape \(1, 2\), must be \[prompts, 3\]"):
        metric.update(torch.zeros(1, 2))


@pytest.mark.parametrize("ks", [[], [0, 1], [2, 2]])
def test_wrong_ks_are_refused(ks: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct positive"):
        MaxAtK(ks)


def test_a_flat_list_of_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards_PN"):
        MaxAtK([1]).update(torch.zeros(4))


CASTS = {
    "to_bfloat16": lambda module: module.to(torch.bfloat16),
    "bfloat16": lambda module: module.bfloat16(),
    "to_half": lambda module: module.to(torch.float16),
    "half": lambda module: module.half(),
    "float": lambda module: module.float(),
    "to_other_and_dtype": lambda module: module.to(torch.zeros(1, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("is_child", [False, True])
def test_states_survive_casts_of_the_metric_and_of_its_parent(cast, is_child: bool) -> None:  # type: ignore[no-untyped-def]
    """601 groups of reward 1.001: bfloat16 rounds both the count (600) and the sum; and so on after a reset."""
    metric, mean = MaxAtK([1]), WeightedMean()
    for _ in range(2):
        metric.update(torch.full((601, 1), 1.001, dtype=torch.float64))
        mean.update(torch.full((601,), 1.001, dtype=torch.float64))
        if is_child:
            parent = nn.ModuleDict({"metric": metric, "mean": mean, "layer": nn.Linear(1, 1)})
            cast(parent)
            assert parent["layer"].weight.dtype == cast(nn.Linear(1, 1)).weight.dtype
        else:
            cast(metric)
            cast(mean)
        assert metric.total_K.dtype == torch.float64
        assert metric.count_K.item() == 601
        assert metric.compute()["max_at_k/1"].item() == pytest.approx(1.001, abs=1e-12)
        assert mean.compute().item() == pytest.approx(1.001, abs=1e-12)
        metric.reset()
        mean.reset()
        assert metric.total_K.dtype == mean.total.dtype == torch.float64


def test_set_dtype_leaves_the_sums_alone() -> None:
    metric = MaxAtK([1])
    metric.set_dtype(torch.bfloat16)
    assert metric.count_K.dtype == torch.float64


def test_a_move_to_another_device_moves_the_states() -> None:
    metric = MaxAtK([1]).to("meta")
    assert metric.total_K.device.type == "meta"
    assert metric.total_K.dtype == torch.float64


def test_rewards_of_any_dtype_are_summed_in_float64() -> None:
    metric = MaxAtK([1])
    for _ in range(3):
        metric.update(torch.full((1000, 1), 0.5, dtype=torch.bfloat16))
    assert metric.total_K.item() == 1500.0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_weighted_mean_matches_the_definition_and_skips_nan() -> None:
    metric = WeightedMean()
    metric.update(torch.tensor([1.0, NAN, 4.0]), torch.tensor([1.0, 5.0, 3.0]))
    metric.update(2.0)
    assert metric.compute().item() == pytest.approx((1.0 + 12.0 + 2.0) / 5.0, abs=1e-12)
    assert WeightedMean().compute().isnan()


SPLITS = {"uneven": [[0, 1, 2, 3, 4], [5]], "one_rank_without_update": [[0, 1, 2, 3, 4, 5], []]}


def on_rank(rank: int, port: int, out: str) -> None:
    timeout = timedelta(minutes=5)  # a rank that died must not leave the other waiting
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timeout)
    found = {}
    for split, rows_of_rank in SPLITS.items():
        metric, share, mean = MaxAtK(KS), PassAtK(KS), WeightedMean()
        for row in rows_of_rank[rank]:
            metric.update(REWARDS_PN[row : row + 1])
            share.update(REWARDS_PN[row : row + 1])
            mean.update(float(row), 2.0)
        found[split] = {**metric.compute(), **share.compute(), "mean": mean.compute(), "local_count_K": metric.count_K}
    torch.save(found, Path(out) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    other = mp.get_context("fork").Process(target=on_rank, args=(1, port, str(tmp_path)))  # without the imports
    other.start()
    on_rank(0, port, str(tmp_path))  # the test's own process is the other rank
    other.join()
    assert other.exitcode == 0
    for rank in range(2):
        for split, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert_matches(found, "max_at_k", GROUPS)
            assert_matches(found, "pass_at_k", GROUPS, 1.0)
            assert found["mean"].item() == pytest.approx(2.5, abs=1e-12)
            # compute() must not leave the summed states behind, or the next epoch counts twice.
            assert found["local_count_K"][0].item() == sum(row < 5 for row in SPLITS[split][rank])


def test_rollout_metrics_are_the_sums_of_their_parts_and_start_again_after_reset() -> None:
    metrics = RolloutMetrics(SAMPLE_VALUES)
    values = {tag: torch.tensor([1.0, NAN, 4.0]) for tag in SAMPLE_VALUES}
    for _ in range(2):
        metrics.update(REWARDS_PN[:2], values, torch.full(REWARDS_PN[:2].shape, -1))
        assert "distinct_correct" not in metrics.compute()  # nothing is known of behaviours
        metrics.reset()
        behaviours_PN = torch.tensor([[0, 1, 1, 0], [3, 4, 3, -1], [-1, -1, -1, -1]])
        rewards_PN = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
        metrics.update(rewards_PN, values, behaviours_PN)
        assert metrics.compute()["distinct_correct"] == 1.5
        metrics.reset()
        metrics.update(REWARDS_PN[:2], values, torch.full(REWARDS_PN[:2].shape, -1))
        found = metrics.compute()
        assert found["reward"] == found["max_at_k/1"] == pytest.approx(REWARDS_PN[:2].mean().item(), abs=1e-12)
        assert found["pass_at_k/4"] == 0.5
        assert all(found[tag] == 2.5 for tag in SAMPLE_VALUES)
        assert "max_at_k/8" not in found  # no group has 8 samples
        metrics.reset()


def test_states_made_in_inference_mode_can_be_updated_outside() -> None:
    with torch.inference_mode():
        best, mean = MaxAtK([1, 2]), WeightedMean()
        best.update(torch.tensor([[0.0, 1.0]]))
        mean.update(2.0)
        best.reset()
        mean.reset()
    best.update(torch.tensor([[0.0, 1.0]]))
    mean.update(3.0)
    assert float(best.compute()["max_at_k/2"]) == 1.0
    assert float(mean.compute()) == 3.0
