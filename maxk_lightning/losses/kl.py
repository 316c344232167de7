"""Per-token estimators of KL(pi || reference) from tokens that pi sampled (Schulman, "Approximating KL divergence",
2020).

Shapes: B rows, T completion tokens. Each returns one number per token (float32 or wider), differentiable in
`logprobs_BT`; mask and weight them like the loss. With x ~ pi and r = reference(x) / pi(x):

| | value | bias of the value | expected gradient, when it is put into a loss |
|---|---|---|---|
| k1 | -log r | none; can be negative | 0: E[grad log pi] = 0. Only useful inside the reward |
| k2 | (log r)^2 / 2 | third order in the distance (KL is second) | that of KL(pi || reference), exactly |
| k3 | r - 1 - log r | none where reference << pi; never negative | that of KL(reference || pi), the reverse direction |

The paper's penalty (arXiv:2510.23393, eq. 4) is against pi_old: pass the behaviour log-probs as the reference. Away
from pi_old the tokens are not samples of pi; all statements then hold to first order in the drift only.
"""

from torch import Tensor

from maxk_lightning.losses.policy_loss import at_least_float32
from maxk_lightning.objectives import LOG_RATIO_LIMIT


def kl_k1(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """-log r: unbiased value, useless gradient."""
    return _log_ratios(logprobs_BT, reference_logprobs_BT)


def kl_k2(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """(log r)^2 / 2: biased value, unbiased gradient of KL(pi || reference)."""
    return _log_ratios(logprobs_BT, reference_logprobs_BT).square() / 2


def kl_k3(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """r - 1 - log r: unbiased non-negative value, gradient of KL(reference || pi)."""
    log_ratios_BT = _log_ratios(logprobs_BT, reference_logprobs_BT)
    return (-log_ratios_BT).expm1() + log_ratios_BT


def _log_ratios(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    differences_BT = at_least_float32(logprobs_BT) - at_least_float32(reference_logprobs_BT)
    return differences_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
