"""Reference vectors from brute force and from other projects; `data/vectors.json` states source and tolerance of each.

Published advantages are n times our credits. Vectors of forms that we do not offer are listed in NOT_OFFERED, unless
they are a one-line composition of forms that we do.
"""

import json
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from maxk_lightning.estimators import max_at_k, pass_at_k
from maxk_lightning.objectives import (
    GRPO,
    RLOO,
    RSGRPO,
    BonMaxMean,
    BonMaxSecond,
    ExactMaxAtK,
    MaxAtK,
    MaxRL,
    Objective,
    OffPolicyMaxAtK,
    PassKTraining,
    group_diagnostics,
)
from maxk_lightning.objectives.exact import sorted_log_ratios
from maxk_lightning.objectives.group import sort_groups
from maxk_lightning.objectives.subset_law import SubsetLaw, subset_law
from tests.support.paths import FIXTURES

VECTORS = json.loads((FIXTURES / "vectors.json").read_text())["vectors"]

NOT_OFFERED = {
    "published_table": "results of training runs, not of a formula; the README and `compare` use them",
    "pkpo_gaussian_toy": "optimum of a continuous policy: no group of samples to feed",
    "pkpo_gaussian_toy_at_1": "quadrature of a continuous policy: no group of samples to feed",
}
"Vectors without a counterpart here, and why."


def row(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def run(objective: Objective, r: list[float], rho: list[float] | None = None) -> Tensor:
    rewards_PN = row(r)
    return objective(rewards_PN, torch.zeros_like(rewards_PN) if rho is None else row(rho).log())[0]


def law_of(r: list[float], rho: list[float], k: int) -> tuple[SubsetLaw, Callable[[Tensor], Tensor]]:
    """The law with rewards below the best, and the way from ranks back to samples."""
    rewards_PN = row(r)
    groups = sort_groups(rewards_PN)
    log_ratios_PN = sorted_log_ratios(groups, rewards_PN, row(rho).log())
    law = subset_law(groups.rewards_PN - groups.best_P1, log_ratios_PN, groups.num_samples_P, k)
    return law, lambda values_PN: groups.unsort(values_PN)[0]


def advantages(law: SubsetLaw) -> Tensor:
    """A_i = E[max | i in I] - E[max | i not in I]."""
    return law.value_with_PN / law.inclusion_PN - law.value_without_PN / law.exclusion_PN


def inclusion_u(rho: list[float], k: int) -> Tensor:
    law, unsort = law_of([float(i) for i in range(len(rho))], rho, k)
    return law.log_normaliser_P.exp() * unsort(law.inclusion_PN)


def conditional_difference(r: list[float], rho: list[float], k: int) -> Tensor:
    law, unsort = law_of(r, rho, k)
    return unsort(advantages(law))


def self_normalised_objective_gradient(r: list[float], rho: list[float], k: int) -> Tensor:
    """Gradient weights of J / E, pi_i (1 - pi_i) A_i; our self-normalised credits leave out the factor 1 - pi_i."""
    if k == len(r):
        return torch.zeros(len(r), dtype=torch.float64)
    law, unsort = law_of(r, rho, k)
    return run(ExactMaxAtK(k, self_normalise=True, ratio_clip=None), r, rho) * unsort(law.exclusion_PN)


def pkpo_loo(r: list[float], k: int) -> Tensor:
    """PKPO's leave-one-out baseline with 1 / (n - 1), from our plain credits and max@k of the others."""
    n = len(r)
    others_PN = torch.stack([row(r)[0][torch.arange(n) != i] for i in range(n)])
    return run(MaxAtK(k, "none"), r) - k / (n - 1) * max_at_k(others_PN, [k])[:, 0]


def mean_centred(r: list[float], k: int) -> Tensor:
    """Plain centring: (n - k) / n times our unbiased centred credits, and nothing at k = n."""
    n = len(r)
    return run(MaxAtK(k), r) * (n - k) / n if k < n else torch.zeros(n, dtype=torch.float64)


def estimate_max_at_k(k: int, r: list[float] | None = None, n: int = 0, r_formula: str = "") -> Tensor:
    return max_at_k(row(r if r is not None else [float(i) for i in range(1, n + 1)]), [k])[0, 0]


def grpo(r: list[float], ddof: int, eps: float) -> Tensor:
    """Ours has the sample deviation and no eps: put the vector's own back in."""
    n = len(r)
    sample_std = row(r).std().item()
    std = sample_std * math.sqrt((n - 1) / n) if ddof == 0 else sample_std
    return run(GRPO(), r) * n * (sample_std / (std + eps) if std else 1.0)


def pass_k_training(correct: list[float], k: int, eps: float) -> Tensor:
    """Ours has no eps: put the vector's own back in."""
    n = len(correct)
    rate = pass_at_k(row(correct), [k]).item()
    std = math.sqrt(rate * (1 - rate))
    return run(PassKTraining(k), correct) * n * (std / (std + eps))


def variance_of_normaliser(n: int, k: int, var_rho: float) -> Tensor:
    """Var E for independent ratios 1 +- sqrt(var) with a fair coin, by enumeration of the number of heads."""
    mean, square = 0.0, 0.0
    for heads in range(n + 1):
        rho = [1 + math.sqrt(var_rho)] * heads + [1 - math.sqrt(var_rho)] * (n - heads)
        log_normaliser_P = group_diagnostics(torch.zeros(1, n), row(rho).log(), k).log_normaliser_P
        probability = math.comb(n, heads) / 2**n
        mean += probability * log_normaliser_P.exp().item()
        square += probability * (2 * log_normaliser_P).exp().item()
    assert mean == pytest.approx(1.0, abs=1e-12)
    return torch.tensor(square - mean**2, dtype=torch.float64)


def categorical_gradient(values: list[float], logits: list[float], k: int) -> Tensor:
    return expected_gradient(MaxAtK(k, "none"), values, logits, logits, n=4)


def expected_max(values: list[float], logits: list[float], k: int) -> Tensor:
    probabilities = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    return expectation(lambda rewards_PN, _: max_at_k(rewards_PN, [k]), values, probabilities, probabilities, n=4)[0]


def anti_kl(reward: float, logits_old: list[float], logits: list[float], n: int, k: int) -> dict[str, Tensor]:
    """Centring after weighting, for a constant reward: the true gradient is 0, this is not."""

    def centred(rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        credits_PN = ExactMaxAtK(k, "none", ratio_clip=None)(rewards_PN, log_ratios_PN)
        return credits_PN - credits_PN.mean(-1, keepdim=True)

    values = [reward] * len(logits)
    if k < n:
        ours = expected_gradient(OffPolicyMaxAtK(k, "mean", clamp=None), values, logits, logits_old, n)
        torch.testing.assert_close(ours, expected_gradient(centred, values, logits, logits_old, n))
    return {"expected": expected_gradient(centred, values, logits, logits_old, n)}


def expected_gradients(
    values: list[float], logits_old: list[float], logits: list[float], n: int, k: int
) -> dict[str, Tensor]:
    def times_ratio(objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda rewards_PN, log_ratios_PN: log_ratios_PN.exp() * objective(rewards_PN, log_ratios_PN)

    methods = {
        "true": ExactMaxAtK(k, "none", ratio_clip=None),
        "ignore": MaxAtK(k, "none"),
        "ppo_unclipped": times_ratio(MaxAtK(k, "none")),
        "first_order": OffPolicyMaxAtK(k, clamp=None),
        "first_order_clamp.2": OffPolicyMaxAtK(k, clamp=0.2),
        "exact": ExactMaxAtK(k, "none", ratio_clip=None),
        "exact_loo1": ExactMaxAtK(k, "loo1", ratio_clip=None),
        "exact_loo": ExactMaxAtK(k, ratio_clip=None),
        "selfnorm_loo(pi*A)": ExactMaxAtK(k, self_normalise=True, ratio_clip=None),
        "first_order_times_rho(double count)": times_ratio(OffPolicyMaxAtK(k, clamp=None)),
    }
    return {name: expected_gradient(method, values, logits, logits_old, n) for name, method in methods.items()}


def expected_gradient(
    method: Callable[[Tensor, Tensor], Tensor],
    values: list[float],
    logits: list[float],
    logits_old: list[float],
    n: int,
) -> Tensor:
    """E[sum_i credit_i grad log pi(y_i)] over all batches of n actions of the old policy; grad log pi = e_y - pi."""
    policy, old = (torch.tensor(x, dtype=torch.float64).softmax(-1) for x in (logits, logits_old))
    scores_VV = torch.eye(len(values), dtype=torch.float64) - policy
    credits_V = expectation(method, values, policy, old, n)
    return credits_V @ scores_VV


def expectation(
    method: Callable[[Tensor, Tensor], Tensor], values: list[float], policy: Tensor, old: Tensor, n: int
) -> Tensor:
    """E of the result summed over the samples of each action, or of the result itself when it is not per sample."""
    actions_PN = torch.tensor(list(product(range(len(values)), repeat=n)))
    result = method(torch.tensor(values, dtype=torch.float64)[actions_PN], (policy / old).log()[actions_PN])
    expected = old[actions_PN].prod(-1, keepdim=True) * result
    if result.shape != actions_PN.shape:
        return expected.sum(0)
    return torch.stack([(expected * (actions_PN == action)).sum() for action in range(len(values))])


CHECKS: dict[str, Callable[..., Any]] = {
    "max_at_k": estimate_max_at_k,
    "pass_at_k": lambda n, c, k: pass_at_k(row([1.0] * c + [0.0] * (n - c)), [k])[0, 0],
    "max_at_k_mean_over_prompts": lambda r, k: max_at_k(torch.tensor(r), [k]).mean(),
    "max_at_k_iid": expected_max,
    "s": lambda r, k: run(MaxAtK(k, "none"), r),
    "sloo1": lambda r, k: run(MaxAtK(k, "loo1"), r),
    "sloo": pkpo_loo,
    "loo_centred": lambda r, k: run(MaxAtK(k), r) * len(r) / k,
    "s_mean_centred": mean_centred,
    "exact": lambda r, rho, k: run(ExactMaxAtK(k, "none", ratio_clip=None), r, rho),
    "exact_loo1": lambda r, rho, k: run(ExactMaxAtK(k, "loo1", ratio_clip=None), r, rho),
    "exact_loo": lambda r, rho, k: run(ExactMaxAtK(k, ratio_clip=None), r, rho),
    "exact_A": conditional_difference,
    "exact_inclusion_u": inclusion_u,
    "exact_objective": lambda r, rho, k: run(ExactMaxAtK(k, "none", ratio_clip=None), r, rho).sum() / k,
    "exact_selfnorm": self_normalised_objective_gradient,
    "first_order": lambda r, rho, k, clamp: run(OffPolicyMaxAtK(k, clamp=clamp), r, rho),
    "offpolicy_order0": lambda r, rho, k: run(MaxAtK(k, "none"), r),
    "grpo": grpo,
    "rloo": lambda r: run(RLOO(), r) * len(r),
    "bon_max_mean": lambda r: run(BonMaxMean(), r) * len(r),
    "bon_max_second": lambda r: run(BonMaxSecond(), r) * len(r),
    "bon_mean": lambda r, k, ddof, eps: run(MaxAtK(k, "zscore"), r) * len(r),
    "tang_loo": lambda r: run(MaxAtK(len(r), "loo1"), r),
    "passk_training": pass_k_training,
    "maxrl": lambda r: run(MaxRL(), r) * len(r),
    "rs_grpo": lambda r, beta: run(RSGRPO(beta), r) * len(r),
    "var_normaliser": variance_of_normaliser,
    "categorical_grad": categorical_gradient,
    "mean_centring_anti_kl": anti_kl,
    "expected_gradient": expected_gradients,
    # expansions to second order are not offered; up to two ratios they leave nothing out
    "offpolicy_order2": lambda r, rho, k: run(ExactMaxAtK(k, "none", ratio_clip=None), r, rho),
    "offpolicy_others_order1": lambda r, rho, k: run(ExactMaxAtK(k, "none", ratio_clip=None), r, rho),
}


def is_refused(vector: dict[str, Any]) -> bool:
    """Choices for which the vector says zeros (or plain REINFORCE), and which our constructors or calls refuse."""
    name, k = vector["fn"], vector["in"].get("k")
    n = len(vector["in"].get("r", vector["in"].get("correct", [])))
    return (name in ("sloo1", "exact_loo1") and k == 1) or (name == "passk_training" and k == n)


def is_offered(vector: dict[str, Any]) -> bool:
    expansions = ("offpolicy_order2", "offpolicy_others_order1")
    return vector["fn"] in CHECKS and not (vector["fn"] in expansions and vector["in"]["k"] > 2)


@pytest.mark.parametrize("vector", [v for v in VECTORS if is_offered(v)], ids=lambda v: f"{v['fn']}-{v['in'].get('k')}")
def test_vector(vector: dict[str, Any]) -> None:
    if is_refused(vector):
        with pytest.raises(ValueError, match=r"`k`|are both"):
            CHECKS[vector["fn"]](**vector["in"])
        return
    actual = CHECKS[vector["fn"]](**vector["in"])
    named = actual if isinstance(actual, dict) else {"": actual}
    for name, value in named.items():
        expected = torch.tensor(vector["out"][name] if name else vector["out"], dtype=torch.float64)
        torch.testing.assert_close(value.double(), expected, rtol=vector["tol"], atol=vector["tol"])


def test_stability_at_a_thousand_samples() -> None:
    [vector] = [v for v in VECTORS if v["fn"] == "exact_stability"]
    n, k, expected = vector["in"]["n"], vector["in"]["k"], vector["out"]
    index = torch.arange(1, n + 1, dtype=torch.float64)
    rho = ((10 ** (4 * (index * (math.sqrt(5) - 1) / 2).frac() - 2)) * 2**20).round() / 2**20
    rewards = ((index * math.sqrt(2)).frac() * 2**20).round() / 2**20
    law, unsort = law_of(rewards.tolist(), rho.tolist(), k)
    pi_N = unsort(law.inclusion_PN)
    value = (unsort(law.value_with_PN) + rewards.max() * pi_N).sum() / k
    weights_N = self_normalised_objective_gradient(rewards.tolist(), rho.tolist(), k)
    diagnostics = group_diagnostics(rewards.unsqueeze(0), rho.log().unsqueeze(0), k)
    tolerance = 1e-11  # the reference has 140 digits; our error is about 1e-15 per recursion step
    assert value.item() == pytest.approx(expected["J_sn"], rel=tolerance)
    assert diagnostics.log_normaliser_P.item() == pytest.approx(expected["log_E"], rel=tolerance)
    assert weights_N.abs().sum().item() == pytest.approx(expected["sum_abs_w_sn"], rel=tolerance)
    assert weights_N[expected["top_idx_0based"]].tolist() == pytest.approx(expected["top_w_sn"], rel=tolerance)
    assert pi_N[:5].tolist() == pytest.approx(expected["pi_first5"], rel=tolerance)


def test_every_vector_is_checked_or_listed() -> None:
    names = {vector["fn"] for vector in VECTORS}
    assert names == set(CHECKS) | set(NOT_OFFERED) | {"exact_stability"}
