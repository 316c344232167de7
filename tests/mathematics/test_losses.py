"""Losses against their formulas, finite differences on both sides of every clip, and enumerated KL estimators."""

import math
import random

import pytest
import torch
from torch import Tensor

from maxk_lightning.losses import (
    CISPO,
    M2PO,
    ClippedSurrogate,
    LossTerms,
    MaskedWeights,
    PolicyLoss,
    ScoreFunction,
    SequenceClippedSurrogate,
    StepCounts,
    TruncatedWeights,
    check_loss_fits,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_importance_weights,
    token_weights,
    truncated_importance_weights,
    weights_by_constant,
    weights_by_sequence,
    weights_by_token,
)
from maxk_lightning.losses.policy_loss import clipped_surrogate
from maxk_lightning.objectives import LOG_RATIO_LIMIT, ExactMaxAtK, MaxAtK

LOSSES: list[PolicyLoss] = [
    ScoreFunction(),
    ClippedSurrogate(),
    ClippedSurrogate(clip_low=0.2, clip_high=0.5, dual_clip=3.0),
    SequenceClippedSurrogate(clip_low=0.2, clip_high=0.3),
    CISPO(ratio_low=0.5, ratio_high=2.0),
    CISPO(ratio_low=0.5, ratio_high=2.0, ratio="prefix"),
    M2PO(),
]


def float64(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one_token(policy_loss: PolicyLoss, ratio: float, credit: float) -> tuple[float, float, bool]:
    """Loss, gradient with respect to the log-prob, and clip flag of a single token with log pi_old = -1."""
    logprobs_BT = float64([[-1.0 + math.log(ratio)]]).requires_grad_()
    terms = policy_loss(logprobs_BT, float64([[-1.0]]), float64([credit]), torch.ones(1, 1, dtype=torch.bool))
    (gradient_BT,) = torch.autograd.grad(terms.loss_BT.sum(), logprobs_BT)
    return terms.loss_BT.item(), gradient_BT.item(), bool(terms.is_clipped_BT.item())


@pytest.mark.parametrize(
    ("ratio", "credit", "followed", "is_clipped"),
    [
        (1.0, 2.0, 1.0, False),
        (1.19, 2.0, 1.19, False),
        (1.21, 2.0, 1.2, True),
        (0.5, 2.0, 0.5, False),
        (1.5, -2.0, 1.5, False),
        (0.81, -2.0, 0.81, False),
        (0.79, -2.0, 0.8, True),
        (7.0, -2.0, 7.0, False),
        (3.0, 0.0, 3.0, False),
    ],
)
def test_clipped_surrogate_is_equation_4(ratio: float, credit: float, followed: float, is_clipped: bool) -> None:
    loss, gradient, flag = one_token(ClippedSurrogate(), ratio, credit)
    assert loss == pytest.approx(-min(ratio * credit, min(max(ratio, 0.8), 1.2) * credit))
    assert loss == pytest.approx(-followed * credit)
    assert gradient == pytest.approx(0.0 if is_clipped else -ratio * credit)
    assert flag is is_clipped


@pytest.mark.parametrize(
    ("ratio", "credit", "followed"), [(1.4, 1.0, 1.4), (1.6, 1.0, 1.5), (2.9, -1.0, 2.9), (3.1, -1.0, 3.0)]
)
def test_clip_higher_and_dual_clip(ratio: float, credit: float, followed: float) -> None:
    loss, gradient, flag = one_token(ClippedSurrogate(clip_low=0.2, clip_high=0.5, dual_clip=3.0), ratio, credit)
    assert loss == pytest.approx(-followed * credit)
    assert flag is (ratio != followed)
    assert gradient == pytest.approx(0.0 if flag else -ratio * credit)


@pytest.mark.parametrize(("credit", "clips"), [(1.0, {"clip_high": 0.5}), (-1.0, {"clip_low": 0.5})])
def test_on_the_boundary_of_a_clip_the_gradient_flows(credit: float, clips: dict[str, float]) -> None:
    ratios_BT = float64([[1.5 if credit > 0 else 0.5]])  # exact in binary, unlike exp(log(1.5))
    ratios_BT.requires_grad_()
    settings = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None} | clips
    terms = clipped_surrogate(ratios_BT, float64([credit]), torch.ones(1, 1, dtype=torch.bool), **settings)  # type: ignore[arg-type]
    (gradient_BT,) = torch.autograd.grad(terms.loss_BT.sum(), ratios_BT)
    assert not terms.is_clipped_BT.any()
    assert gradient_BT.item() == -credit


def test_sequence_surrogate_uses_the_geometric_mean_ratio_of_each_completion() -> None:
    logprobs_BT = float64([[-1.0, -2.0, -0.5], [-0.3, -0.7, 9.0]]).requires_grad_()
    old_BT = float64([[-1.1, -2.0, -0.7], [-0.2, -0.2, -9.0]])
    mask_BT = torch.tensor([[True, True, True], [True, True, False]])
    credits_B = float64([0.5, -1.0])
    terms = SequenceClippedSurrogate(clip_low=0.2, clip_high=0.3)(logprobs_BT, old_BT, credits_B, mask_BT)
    first, second = math.exp(0.1), math.exp(-0.3)  # means of (.1, 0, .2) and (-.1, -.5); the second is below 0.8
    expected_BT = float64([[-first * 0.5] * 3, [0.8, 0.8, 0.0]])
    torch.testing.assert_close(terms.loss_BT, expected_BT)
    assert terms.is_clipped_BT.tolist() == [[False] * 3, [True, True, False]]
    weights_BT = weights_by_sequence(mask_BT, num_prompts=1)
    (gradient_BT,) = torch.autograd.grad((terms.loss_BT * weights_BT).sum(), logprobs_BT)
    # one term -ratio A per completion, and the ratio depends on every token by 1 / length
    torch.testing.assert_close(gradient_BT, float64([[-first * 0.5 / 3] * 3, [0.0] * 3]))
    assert second < 0.8


@pytest.mark.parametrize(("ratio", "bounded"), [(0.4, 0.5), (1.0, 1.0), (1.9, 1.9), (2.5, 2.0)])
def test_cispo_bounds_the_ratio_and_keeps_every_gradient(ratio: float, bounded: float) -> None:
    loss, gradient, flag = one_token(CISPO(ratio_low=0.5, ratio_high=2.0), ratio, 3.0)
    assert gradient == pytest.approx(-bounded * 3.0)
    assert loss == pytest.approx(-bounded * 3.0 * (-1.0 + math.log(ratio)))
    assert flag is (bounded != ratio)


def random_rows(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, behaviour log-probs, credits and mask of rows of 0 to 300 tokens that drift by 0 to 3 nats; NaN where
    masked, in front of some completions too."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor([0, 1, 2, 5, 20, 60, 150, 300, 300, 300])
    drifts_B = torch.tensor([1.0, 3.0, 0.5, 0.0, 0.2, 0.3, 1.0, 0.05, 2.0, 3.0])[
        torch.randperm(10, generator=generator)
    ]
    starts_B1 = torch.randint(4, (10, 1), generator=generator)
    positions_T = torch.arange(304)
    mask_BT = (positions_T >= starts_B1) & (positions_T < starts_B1 + lengths_B.unsqueeze(-1))
    logprobs_BT = -3 * torch.rand(10, 304, dtype=torch.float64, generator=generator)
    noise_BT = torch.randn(10, 304, dtype=torch.float64, generator=generator)
    old_BT = logprobs_BT - drifts_B.double().unsqueeze(-1) * noise_BT
    credits_B = torch.randn(10, dtype=torch.float64, generator=generator)
    credits_B[seed % 10] = 0.0
    return logprobs_BT.where(mask_BT, math.nan), old_BT.where(mask_BT, math.nan), credits_B, mask_BT


def m2po_of_one_completion(
    log_ratios: list[float], credit: float, second_moment: float
) -> tuple[list[float], list[bool]]:
    """What multiplies grad log pi of each token, and whether it is left out: the largest taken away one by one."""
    inside = [i for i, value in enumerate(log_ratios) if (credit > 0 and value > 0) or (credit < 0 and value < 0)]
    left_out: set[int] = set()
    while inside and sum(log_ratios[i] ** 2 for i in inside) / len(inside) > second_moment:
        largest = max(abs(log_ratios[i]) for i in inside)
        left_out |= {i for i in inside if abs(log_ratios[i]) == largest}
        inside = [i for i in inside if i not in left_out]
    weights = [0.0 if i in left_out else math.exp(value) * credit for i, value in enumerate(log_ratios)]
    return weights, [i in left_out for i in range(len(log_ratios))]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("second_moment", [0.001, 0.04, 1.0])
def test_m2po_leaves_out_the_largest_of_each_completion_until_the_rest_fits(seed: int, second_moment: float) -> None:
    logprobs_BT, old_BT, credits_B, mask_BT = random_rows(seed)
    logprobs_BT.requires_grad_()
    terms = M2PO(second_moment)(logprobs_BT, old_BT, credits_B, mask_BT)
    (gradient_BT,) = torch.autograd.grad(terms.loss_BT.sum(), logprobs_BT)
    assert (gradient_BT[~mask_BT] == 0).all()
    assert not terms.is_clipped_BT[~mask_BT].any()
    for row, is_token_T in enumerate(mask_BT):
        values = (logprobs_BT[row] - old_BT[row])[is_token_T].tolist()
        weights, is_left_out = m2po_of_one_completion(values, credits_B[row].item(), second_moment)
        assert terms.is_clipped_BT[row, is_token_T].tolist() == is_left_out
        torch.testing.assert_close(-gradient_BT[row, is_token_T], float64(weights))
        torch.testing.assert_close(-terms.loss_BT[row, is_token_T], float64(weights))


def test_m2po_leaves_out_equal_tokens_together_wherever_they_stand() -> None:
    values = [0.1, 0.5, -0.9, 0.5, 0.5, 0.0, 0.2]  # with one of the three .5 the mean of squares is .1, with two .14
    for seed in range(5):
        shuffled = random.Random(seed).sample(values, len(values))
        log_ratios_BT, mask_BT = float64([shuffled, [-value for value in shuffled]]), torch.ones(2, 7, dtype=torch.bool)
        terms = M2PO(0.1001)(log_ratios_BT, torch.zeros_like(log_ratios_BT), float64([2.0, -0.1]), mask_BT)
        assert terms.is_clipped_BT.tolist() == [[value == 0.5 for value in shuffled]] * 2


def test_m2po_without_a_bound_is_the_unclipped_surrogate() -> None:
    logprobs_BT, old_BT, credits_B, mask_BT = random_rows(3)
    loss_BT = M2PO(math.inf)(logprobs_BT, old_BT, credits_B, mask_BT).loss_BT
    ratios_BT = (logprobs_BT - old_BT).exp()
    torch.testing.assert_close(loss_BT, (-ratios_BT * credits_B.unsqueeze(-1)).where(mask_BT, 0.0))


def test_m2po_agrees_with_finite_differences_where_tokens_differ() -> None:
    generator = torch.Generator().manual_seed(7)
    old_BT = -torch.rand(3, 8, dtype=torch.float64, generator=generator)
    logprobs_BT = old_BT + 0.3 * torch.randn(3, 8, dtype=torch.float64, generator=generator)
    mask_BT = torch.rand(3, 8, generator=generator) < 0.8
    credits_B = float64([0.7, -1.3, 0.4])
    is_clipped_BT = M2PO()(logprobs_BT, old_BT, credits_B, mask_BT).is_clipped_BT
    assert is_clipped_BT.any()
    assert not is_clipped_BT[mask_BT].all()
    assert torch.autograd.gradcheck(
        lambda leaf_BT: M2PO()(leaf_BT, old_BT, credits_B, mask_BT).loss_BT, logprobs_BT.requires_grad_()
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("ratio_low", "ratio_high"), [(0.0, 5.0), (0.3, 1.5), (0.0, math.inf)])
def test_prefix_cispo_multiplies_the_ratios_up_to_each_token(seed: int, ratio_low: float, ratio_high: float) -> None:
    logprobs_BT, old_BT, credits_B, mask_BT = random_rows(seed)
    logprobs_BT.requires_grad_()
    terms = CISPO(ratio_low, ratio_high, ratio="prefix")(logprobs_BT, old_BT, credits_B, mask_BT)
    (gradient_BT,) = torch.autograd.grad(terms.loss_BT.sum(), logprobs_BT)
    assert (gradient_BT[~mask_BT] == 0).all()
    assert not terms.is_clipped_BT[~mask_BT].any()
    for row, is_token_T in enumerate(mask_BT):
        total, ratios, bounded = 0.0, [], []
        for value in (logprobs_BT[row] - old_BT[row])[is_token_T].tolist():
            total += value
            ratios.append(math.exp(min(max(total, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)))
            bounded.append(min(max(ratios[-1], ratio_low), ratio_high))
        credit = credits_B[row].item()
        torch.testing.assert_close(-gradient_BT[row, is_token_T], float64([credit * value for value in bounded]))
        expected = [a != b for a, b in zip(ratios, bounded, strict=True)]
        assert terms.is_clipped_BT[row, is_token_T].tolist() == expected


def test_unbounded_prefix_ratios_weight_prefixes_exactly() -> None:
    """Enumerated: E_mu of the gradient for the logits of token t is that under pi up to t and mu behind."""
    generator = torch.Generator().manual_seed(5)
    logits_TV = torch.randn(3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    mu_TV = torch.randn(3, 3, dtype=torch.float64, generator=generator).log_softmax(-1)
    rewards_B = torch.rand(27, dtype=torch.float64, generator=generator)  # no structure: every token counts
    symbols_BT = torch.cartesian_prod(*[torch.arange(3)] * 3)
    pi_BT = logits_TV.log_softmax(-1)[torch.arange(3), symbols_BT]
    mu_BT = mu_TV[torch.arange(3), symbols_BT]
    loss = CISPO(ratio_high=math.inf, ratio="prefix")
    credits_B = mu_BT.sum(-1).exp() * rewards_B
    loss_BT = loss(pi_BT, mu_BT, credits_B, torch.ones(27, 3, dtype=torch.bool)).loss_BT
    (estimate_TV,) = torch.autograd.grad(-loss_BT.sum(), logits_TV, retain_graph=True)
    for t in range(3):
        mixed_BT = torch.cat([pi_BT[:, : t + 1], mu_BT[:, t + 1 :]], dim=1)
        (exact_TV,) = torch.autograd.grad((mixed_BT.sum(-1).exp() * rewards_B).sum(), logits_TV, retain_graph=True)
        torch.testing.assert_close(estimate_TV[t], exact_TV[t])


@pytest.mark.parametrize("policy_loss", LOSSES, ids=repr)
def test_the_loss_of_a_completion_does_not_depend_on_its_micro_batch(policy_loss: PolicyLoss) -> None:
    logprobs_BT, old_BT, credits_B, mask_BT = random_rows(1)
    whole = policy_loss(logprobs_BT, old_BT, credits_B, mask_BT)
    for rows in ([0], [4, 2], [9, 7, 8]):  # shorter rows are padded less
        length = int((mask_BT[rows] * torch.arange(1, 305)).max())  # 0 for the empty row
        part = policy_loss(logprobs_BT[rows, :length], old_BT[rows, :length], credits_B[rows], mask_BT[rows, :length])
        torch.testing.assert_close(part.loss_BT, whole.loss_BT[rows, :length], rtol=0.0, atol=0.0)
        assert part.is_clipped_BT.equal(whole.is_clipped_BT[rows, :length])


def test_score_function_is_minus_credit_times_log_prob() -> None:
    loss, gradient, flag = one_token(ScoreFunction(), 5.0, 3.0)
    assert (loss, gradient, flag) == (pytest.approx(-3.0 * (-1.0 + math.log(5.0))), pytest.approx(-3.0), False)


@pytest.mark.parametrize("policy_loss", LOSSES, ids=repr)
@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.95, 1.05, 1.4, 1.7, 3.5])
def test_gradients_agree_with_finite_differences_on_both_sides_of_every_clip(
    policy_loss: PolicyLoss, ratio: float
) -> None:
    if isinstance(policy_loss, CISPO):
        return  # holds the ratio constant on purpose; its gradient is tested above
    old_BT = float64([[-1.0, -0.4, -2.0], [-0.7, -1.2, -0.1]])
    mask_BT = torch.tensor([[True, True, False], [True, True, True]])

    def loss_of(logprobs_BT: Tensor) -> Tensor:
        terms: LossTerms = policy_loss(logprobs_BT, old_BT, float64([0.7, -1.3]), mask_BT)
        return terms.loss_BT.sum()

    assert torch.autograd.gradcheck(loss_of, (old_BT + math.log(ratio)).requires_grad_())


@pytest.mark.parametrize("policy_loss", LOSSES, ids=repr)
def test_at_the_behaviour_policy_every_loss_has_the_policy_gradient(policy_loss: PolicyLoss) -> None:
    logprobs_BT = float64([[-1.0, -2.0], [-0.5, -0.1]]).requires_grad_()
    credits_B, mask_BT = float64([0.4, -0.9]), torch.ones(2, 2, dtype=torch.bool)
    terms = policy_loss(logprobs_BT, logprobs_BT.detach(), credits_B, mask_BT)
    weights_BT = weights_by_sequence(mask_BT, num_prompts=1)
    (gradient_BT,) = torch.autograd.grad((terms.loss_BT * weights_BT).sum(), logprobs_BT)
    torch.testing.assert_close(gradient_BT, -credits_B.unsqueeze(-1).expand(2, 2) / 2)
    assert not terms.is_clipped_BT.any()


@pytest.mark.parametrize("policy_loss", LOSSES, ids=repr)
def test_masked_and_empty_completions_have_no_loss_whatever_stands_there(policy_loss: PolicyLoss) -> None:
    logprobs_BT = torch.tensor([[-1.0, math.nan, -math.inf], [math.nan] * 3], requires_grad=True)
    old_BT = torch.tensor([[-1.5, -math.inf, math.nan], [0.0] * 3])
    mask_BT = torch.tensor([[True, False, False], [False] * 3])
    terms = policy_loss(logprobs_BT, old_BT, float64([1.0, 5.0]), mask_BT)
    assert terms.loss_BT[0, 0].isfinite()
    assert (terms.loss_BT[~mask_BT] == 0).all()
    assert not terms.is_clipped_BT[~mask_BT].any()
    (gradient_BT,) = torch.autograd.grad((terms.loss_BT * weights_by_sequence(mask_BT, 1)).sum(), logprobs_BT)
    assert (gradient_BT[~mask_BT] == 0).all()
    assert gradient_BT.isfinite().all()


@pytest.mark.parametrize("policy_loss", LOSSES, ids=repr)
def test_half_precision_is_computed_in_float32_and_ratios_cannot_overflow(policy_loss: PolicyLoss) -> None:
    logprobs_BT = torch.tensor([[-0.5, -900.0]], dtype=torch.bfloat16, requires_grad=True)
    old_BT = torch.tensor([[-900.0, -0.5]])
    terms = policy_loss(logprobs_BT, old_BT, float64([-1.0]), torch.ones(1, 2, dtype=torch.bool))
    assert terms.loss_BT.dtype == torch.float32
    assert terms.loss_BT.isfinite().all()
    (gradient_BT,) = torch.autograd.grad(terms.loss_BT.sum(), logprobs_BT)
    assert gradient_BT.isfinite().all()


def test_kl_estimators_have_the_stated_values_and_gradients() -> None:
    logits_V, reference_V = float64([0.3, -0.5, 0.9, 0.0]).requires_grad_(), float64([0.1, 0.4, -0.2, 0.3])
    log_pi_V, log_reference_V = logits_V.log_softmax(-1), reference_V.log_softmax(-1)
    pi_V = log_pi_V.detach().exp()  # samples come from pi, but carry no gradient

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits_V, retain_graph=True)[0]

    kl = (log_pi_V.exp() * (log_pi_V - log_reference_V)).sum()
    reverse_kl = (log_reference_V.exp() * (log_reference_V - log_pi_V)).sum()
    k1, k2, k3 = ((pi_V * f(log_pi_V, log_reference_V)).sum() for f in (kl_k1, kl_k2, kl_k3))
    torch.testing.assert_close(k1, kl)
    torch.testing.assert_close(k3, kl)
    assert abs(k2 - kl) > 1e-3
    torch.testing.assert_close(gradient(k1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(gradient(k2), gradient(kl))
    torch.testing.assert_close(gradient(k3), gradient(reverse_kl))
    assert (kl_k3(log_pi_V, log_reference_V) >= 0).all()


def test_the_value_of_k2_is_off_by_third_order_in_the_distance() -> None:
    def error_at(step: float) -> float:
        log_pi_V = (step * float64([0.3, -0.5, 0.9, 0.0])).log_softmax(-1)
        log_reference_V = torch.zeros(4, dtype=torch.float64).log_softmax(-1)
        pi_V = log_pi_V.exp()
        return float((pi_V * (kl_k2(log_pi_V, log_reference_V) - (log_pi_V - log_reference_V))).sum())

    assert error_at(0.02) / error_at(0.01) == pytest.approx(8.0, rel=0.05)


def test_engine_corrections_truncate_or_mask_token_and_sequence_ratios() -> None:
    trainer_BT = float64([[-1.0, -2.0, -0.5], [-0.3, -0.7, math.nan]]).requires_grad_()
    engine_BT = float64([[-2.0, -1.9, -0.5], [-0.3, 1.3, -math.inf]])
    mask_BT = torch.tensor([[True, True, True], [True, True, False]])
    ratios = [[math.exp(1.0), math.exp(-0.1), 1.0], [1.0, math.exp(-2.0), 1.0]]
    products = [math.exp(0.9), math.exp(-2.0)]
    cases = [
        (TruncatedWeights(cap=1.5), [[min(r, 1.5) for r in row] for row in ratios]),
        (TruncatedWeights(cap=1.5, per_sequence=True), [[min(p, 1.5)] * 3 for p in products]),
        (MaskedWeights(low=0.5, high=2.0), [[r if 0.5 <= r <= 2.0 else 0.0 for r in row] for row in ratios]),
        (MaskedWeights(low=0.2, high=3.0, per_sequence=True), [[products[0]] * 3, [0.0] * 3]),
    ]
    for correction, expected in cases:
        weights_BT = correction(trainer_BT, engine_BT, mask_BT)
        assert not weights_BT.requires_grad
        torch.testing.assert_close(weights_BT, float64(expected))
    torch.testing.assert_close(truncated_importance_weights(float64([0.0]), float64([-1.0]), cap=2.0), float64([2.0]))
    torch.testing.assert_close(masked_importance_weights(float64([0.0]), float64([-1.0]), 0.5, 2.0), float64([0.0]))


def test_capped_at_infinity_sequence_weights_are_the_unbiased_correction() -> None:
    trainer_V, engine_V = float64([0.2, 0.5, -0.1]).log_softmax(-1), float64([0.4, 0.1, 0.0]).log_softmax(-1)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # all completions of two tokens
    correction = TruncatedWeights(cap=math.inf, per_sequence=True)
    weights_BT = correction(trainer_V[pairs], engine_V[pairs], torch.ones(9, 2, dtype=torch.bool))
    engine_B = engine_V[pairs].sum(-1).exp()
    torch.testing.assert_close((engine_B * weights_BT[:, 0]), trainer_V[pairs].sum(-1).exp())


def test_token_weights_are_their_stated_denominators() -> None:
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    num_prompts, num_completions, total_tokens, max_tokens = 2, 2, 7, 10
    is_token_BT = mask_BT.float()
    expected = {
        "sequence": is_token_BT / torch.tensor([[8.0], [2.0], [1.0], [4.0]]),
        "token": is_token_BT * 2 / 7,
        "constant": is_token_BT / 20,
    }
    by_hand = {
        "sequence": weights_by_sequence(mask_BT, num_prompts),
        "token": weights_by_token(mask_BT, total_tokens, num_completions),
        "constant": weights_by_constant(mask_BT, num_prompts, max_tokens),
    }
    counts = StepCounts(
        num_prompts=num_prompts, num_completions=num_completions, total_tokens=total_tokens, max_tokens=max_tokens
    )
    for name, expected_BT in expected.items():
        torch.testing.assert_close(by_hand[name], expected_BT)
        torch.testing.assert_close(token_weights(name)(mask_BT, counts), expected_BT)  # type: ignore[arg-type]


def test_micro_batches_with_global_denominators_sum_to_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    mask_BT = torch.rand(8, 5, generator=generator) > 0.3
    loss_BT = torch.randn(8, 5, generator=generator)
    counts = StepCounts(num_prompts=4, num_completions=2, total_tokens=int(mask_BT.sum()), max_tokens=5)
    for name in ("sequence", "token", "constant"):
        weights = token_weights(name)
        whole = (loss_BT * weights(mask_BT, counts)).sum()
        pieces = [(loss_BT[i : i + 3] * weights(mask_BT[i : i + 3], counts)).sum() for i in (0, 3, 6)]
        torch.testing.assert_close(torch.stack(pieces).sum(), whole)


def test_grpo_with_sequence_weights_is_the_published_loss() -> None:
    """Mean over prompts and completions of the mean over tokens of -ratio A, with credits A / n."""
    generator = torch.Generator().manual_seed(1)
    log_ratio_BT = 0.1 * torch.randn(4, 3, generator=generator)
    mask_BT = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    advantages_B = torch.tensor([1.0, -1.0, 0.5, -0.5])
    terms = ClippedSurrogate(clip_low=0.9, clip_high=9.0)(log_ratio_BT, torch.zeros(4, 3), advantages_B / 2, mask_BT)
    ours = (terms.loss_BT * weights_by_sequence(mask_BT, num_prompts=2)).sum()
    rows = [
        sum(-math.exp(log_ratio_BT[b, t]) * advantages_B[b] for t in range(3) if mask_BT[b, t]) / mask_BT[b].sum()
        for b in range(4)
    ]
    torch.testing.assert_close(ours, torch.stack(rows).mean())


def test_credits_that_contain_the_ratio_only_go_with_the_score_function() -> None:
    check_loss_fits(ScoreFunction(), ExactMaxAtK(2))
    check_loss_fits(ClippedSurrogate(), MaxAtK(2))
    for policy_loss in LOSSES[1:]:
        with pytest.raises(ValueError, match=r"`policy_loss` \w+ multiplies credits by the policy ratio"):
            check_loss_fits(policy_loss, ExactMaxAtK(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClippedSurrogate(clip_low=0.0), "`clip_low` is 0.0"),
        (lambda: ClippedSurrogate(clip_low=1.5), "`clip_low` is 1.5"),
        (lambda: ClippedSurrogate(clip_high=-0.1), "`clip_high` is -0.1"),
        (lambda: ClippedSurrogate(dual_clip=1.1), "`dual_clip` is 1.1, must be above 1 \\+ clip_high = 1.2"),
        (lambda: SequenceClippedSurrogate(clip_high=0.0), "`clip_high` is 0.0"),
        (lambda: CISPO(ratio_low=1.0), "`ratio_low` is 1.0"),
        (lambda: CISPO(ratio="sequence"), "`ratio` is 'sequence', must be one of token, prefix"),  # type: ignore[arg-type]
        (lambda: M2PO(second_moment=0.0), "`second_moment` is 0.0, must be positive"),
        (lambda: M2PO(second_moment=math.nan), "`second_moment` is nan"),
        (lambda: TruncatedWeights(cap=0.5), "`cap` is 0.5"),
        (lambda: MaskedWeights(low=2.0), "`low` is 2.0"),
        (lambda: token_weights("mean"), "`normalisation` is 'mean', must be one of sequence, token, constant"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_refused_by_name(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
