"""Parts of scripts/sequence_study.py against enumeration and autograd, and its quick run as users start it."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import sequence_study
import torch
from sequence_study import (
    LOSSES,
    QUICK,
    TIS_SEQUENCE,
    drift_direction,
    drifted,
    measure,
    pairs,
    sample_batches,
    spread_of,
    study_cell,
    token_weights,
)
from sequence_tables import OF_ANOTHER_SCALE, markdown
from sequence_toys import (
    Toys,
    at_cells,
    dense_rewards,
    make_toys,
    max_at_k,
    sample,
    score_distribution,
    sparse_rewards,
    true_gradient,
    weighted_scores,
)
from torch import Tensor

from maxk_lightning.losses import truncated_importance_weights
from tests.support.paths import ROOT

FAMILIES = ["independent", "markov"]
NUM_TOKENS = 3
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def small_toys(family: str) -> Toys:
    """Two toys of three tokens and three symbols, all of whose 27 sequences can be listed."""
    generator = torch.Generator().manual_seed(3)
    num_contexts = NUM_TOKENS if family == "independent" else 4
    return Toys(
        family=family,  # type: ignore[arg-type]
        num_tokens=NUM_TOKENS,
        logits_RCV=torch.randn(2, num_contexts, 3, dtype=torch.float64, generator=generator),
        hits_RCV=(torch.rand(2, num_contexts, 3, generator=generator) < 0.5).double(),
    )


def every_sequence(toys: Toys) -> Tensor:
    """Cells of all sequences of each toy: [R, 27, T]."""
    sequences = []
    for symbols in product(range(3), repeat=NUM_TOKENS):
        contexts = range(NUM_TOKENS) if toys.family == "independent" else [3, *symbols[:-1]]
        sequences.append([context * 3 + symbol for context, symbol in zip(contexts, symbols, strict=True)])
    return torch.tensor(sequences).expand(len(toys.logits_RCV), -1, -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_score_distribution_is_that_of_all_sequences(family: str) -> None:
    toys = small_toys(family)
    cells_RST = every_sequence(toys)
    probabilities_RS = at_cells(toys.logits_RCV.log_softmax(-1), cells_RST).sum(-1).exp()
    points_RS = at_cells(toys.hits_RCV, cells_RST).sum(-1).long()
    expected_RM = torch.zeros(2, NUM_TOKENS + 1, dtype=torch.float64).scatter_add(1, points_RS, probabilities_RS)
    torch.testing.assert_close(score_distribution(toys, toys.logits_RCV), expected_RM, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rewards_of", [dense_rewards, lambda toys: sparse_rewards(toys, 0.3)], ids=["dense", "sparse"])
def test_true_gradient_is_that_of_the_best_of_k_over_all_pairs_of_sequences(
    family: str, rewards_of: Callable[[Toys], Tensor]
) -> None:
    toys = small_toys(family)
    cells_RST, rewards_RM = every_sequence(toys), rewards_of(toys)
    rewards_RS = rewards_RM.gather(1, at_cells(toys.hits_RCV, cells_RST).sum(-1).long())
    logits_RCV = (toys.logits_RCV + 0.3).detach().requires_grad_()
    probabilities_RS = at_cells(logits_RCV.log_softmax(-1), cells_RST).sum(-1).exp()
    best_RSS = torch.maximum(rewards_RS.unsqueeze(1), rewards_RS.unsqueeze(2))
    best_of_two = (best_RSS * probabilities_RS.unsqueeze(1) * probabilities_RS.unsqueeze(2)).sum()
    (expected_RCV,) = torch.autograd.grad(best_of_two, logits_RCV)
    assert expected_RCV.abs().max() > 1e-3
    torch.testing.assert_close(true_gradient(toys, logits_RCV, rewards_RM, 2), expected_RCV, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_weighted_scores_are_autograds_gradient_of_the_weighted_log_probs(family: str) -> None:
    toys = small_toys(family)
    cells_RST = every_sequence(toys)
    weights_RST = torch.randn(cells_RST.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits_RCV = toys.logits_RCV.detach().requires_grad_()
    total = (weights_RST * at_cells(logits_RCV.log_softmax(-1), cells_RST)).sum()
    (expected_RCV,) = torch.autograd.grad(total, logits_RCV)
    torch.testing.assert_close(weighted_scores(toys.logits_RCV, cells_RST, weights_RST), expected_RCV, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_come_from_the_policy_of_their_toy(family: str) -> None:
    toys = make_toys(family, 2, 5, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    cells_RST = sample(toys, 20_000, torch.Generator().manual_seed(2))
    points_RS = at_cells(toys.hits_RCV, cells_RST).sum(-1)
    expected_RM = score_distribution(toys, toys.logits_RCV)
    for points in range(6):
        shares_R = (points_RS == points).double().mean(-1)
        torch.testing.assert_close(shares_R, expected_RM[:, points], rtol=0.0, atol=0.015)  # 4 standard errors


def test_weights_of_losses_are_what_their_definitions_say() -> None:
    generator = torch.Generator().manual_seed(4)
    new_BT, old_BT = -torch.rand(6, 5, generator=generator), -torch.rand(6, 5, generator=generator)
    credits_B = torch.randn(6, generator=generator)
    credits_B1, ratios_BT = credits_B.unsqueeze(-1), (new_BT - old_BT).exp()
    expected = {
        "score function": credits_B1.expand_as(ratios_BT),
        "CISPO 1.5": ratios_BT.clamp(max=1.5) * credits_B1,
        "CISPO 2": truncated_importance_weights(new_BT, old_BT, cap=2.0) * credits_B1,  # token TIS is CISPO
        "CISPO of prefixes, 5": ratios_BT.cumprod(-1).clamp(max=5.0) * credits_B1,
        "clip .2": torch.where(
            torch.where(credits_B1 > 0, ratios_BT > 1.2, ratios_BT < 0.8), 0, ratios_BT * credits_B1
        ),
        TIS_SEQUENCE: (new_BT - old_BT).sum(-1, keepdim=True).exp().clamp(max=2.0) * credits_B1.expand_as(ratios_BT),
    }
    for loss, weights_BT in expected.items():
        torch.testing.assert_close(token_weights(loss)(new_BT, old_BT, credits_B), weights_BT)


@pytest.mark.parametrize("drift", sequence_study.DRIFTS)
def test_drift_has_the_wanted_spread_and_signal_raises_max_at_k(drift: str) -> None:
    batches = sample_batches("markov", QUICK, seed=0)
    rewards_RM = dense_rewards(batches.toys)
    direction_RCV = drift_direction(batches, drift, rewards_RM, 8, 4)
    new_RCV = drifted(batches, direction_RCV, 0.5)
    change_RCV = new_RCV - batches.toys.logits_RCV
    torch.testing.assert_close(spread_of(batches, change_RCV), torch.full((len(new_RCV),), 0.5).double())
    if drift == "signal":
        before_R = max_at_k(batches.toys, batches.toys.logits_RCV, rewards_RM, 4)
        after_R = max_at_k(batches.toys, new_RCV, rewards_RM, 4)
        assert (after_R > before_R).all()


def test_bias_and_variance_of_known_estimates() -> None:
    truth_RK = torch.tensor([[3.0, 4.0]]).double().expand(4, 2)
    shift_RK = torch.tensor([[5.0, 0.0], [-5.0, 0.0]]).double().repeat(2, 1)
    estimate_RK = truth_RK + shift_RK + torch.tensor([0.0, 10.0])
    measured = measure(estimate_RK, truth_RK, truth_RK, 2 * truth_RK, num_toys=2)
    assert measured.variance == pytest.approx(2.0)  # sum of 1 and 1 over one degree of freedom
    assert measured.squared_bias == pytest.approx(4.0 - 2.0 / 2)
    assert measured.gain == pytest.approx(measured.cosine - 1.0)
    assert measured.gain_error == pytest.approx(0.0, abs=1e-12)  # both toys are the same
    assert measured.largest == pytest.approx((8.0**2 + 14.0**2) ** 0.5 / 10)


def test_unbiased_pairs_come_out_unbiased_on_policy() -> None:
    batches = sample_batches("markov", sequence_study.Size(num_toys=2, batches_per_toy=24), seed=1)
    rewards_RM = dense_rewards(batches.toys)
    for row in study_cell(batches, batches.toys.logits_RCV, rewards_RM, 8, 4):
        if row["objective"] not in OF_ANOTHER_SCALE and row["loss"] != "sequence clip":
            assert abs(row["squared_bias"]) < 0.05, row  # a factor of 3/4 too much or too little would make it .06


@pytest.mark.slow
def test_the_quick_run_writes_every_row(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "sequence_study.py"), "--quick", "--out", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr
    written = json.loads((tmp_path / "sequence_study.json").read_text())
    named = {tuple(row[key] for key in ("family", "reward", "drift", "objective", "loss")) for row in written["rows"]}
    wanted = product(FAMILIES, sequence_study.REWARDS, sequence_study.DRIFTS, pairs(4))
    assert named == {(family, reward, drift, *pair) for family, reward, drift, pair in wanted}
    assert all(len(row["cosine"]) == len(QUICK.spreads) for row in written["rows"])
    assert set(LOSSES) <= {row["loss"] for row in written["rows"]}
    assert (tmp_path / "sequence_study.png").stat().st_size > 0
    assert markdown(written["rows"], written["spreads"]) in finished.stdout


def test_the_documented_tables_are_those_of_the_documented_numbers() -> None:
    written = json.loads((ROOT / "docs" / "sequence_study.json").read_text())
    assert markdown(written["rows"], written["spreads"]) in (ROOT / "docs" / "sequence_study.md").read_text()
    combinations = {(row["family"], row["reward"], row["n"], row["k"], row["drift"]) for row in written["rows"]}
    assert len(combinations) == len(FAMILIES) * 2 * len(sequence_study.SETTINGS) * len(sequence_study.DRIFTS)
