"""Importance weights between the rollout engine's log-probs and the trainer's own for the same weights.

Engines use other kernels and precisions than the trainer, so the policy that sampled is not quite pi_old. These
weights, multiplied into the loss, correct for that. Shapes: B rows, T completion tokens; ratios are trainer / engine,
detached, float32.

Truncated (TIS, fengyao.notion.site/off-policy-rl, 2025): min(ratio, cap), biased but low variance. Masked (IcePop;
MIS): the ratio inside [low, high] and 0 outside, so that tokens the two disagree on teach nothing. Per token, or per
sequence with the product of the token ratios, which is the unbiased correction before truncation.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from maxk_lightning.losses.policy_loss import at_least_float32, masked
from maxk_lightning.objectives import LOG_RATIO_LIMIT

if TYPE_CHECKING:  # see `objectives.objective`
    AnyTensor = Tensor
else:
    AnyTensor = Any


class EngineCorrection(Protocol):
    """Turns two log-probs of each token into a weight of its loss."""

    def __call__(
        self, trainer_logprobs_BT: AnyTensor, engine_logprobs_BT: AnyTensor, mask_BT: AnyTensor, /
    ) -> AnyTensor:
        """Compute weights_BT, float32, detached; those of masked tokens do not matter."""
        ...


def truncated_importance_weights(trainer_logprobs_BT: Tensor, engine_logprobs_BT: Tensor, cap: float) -> Tensor:
    """Compute min(ratio, cap): weights_BT. For whole completions pass summed log-probs, as [B, 1]."""
    return _ratios(trainer_logprobs_BT, engine_logprobs_BT).clamp(max=cap)


def masked_importance_weights(
    trainer_logprobs_BT: Tensor, engine_logprobs_BT: Tensor, low: float, high: float
) -> Tensor:
    """Compute the ratio if low <= ratio <= high, else 0: weights_BT. For completions pass summed log-probs, [B, 1]."""
    ratios_BT = _ratios(trainer_logprobs_BT, engine_logprobs_BT)
    return torch.where((ratios_BT >= low) & (ratios_BT <= high), ratios_BT, 0.0)


@dataclass(frozen=True)
class TruncatedWeights(EngineCorrection):
    """min(ratio, cap)."""

    cap: float = 2.0
    "Largest weight, at least 1."
    per_sequence: bool = False
    "Whether there is one ratio per completion, the product over its tokens."

    def __post_init__(self) -> None:
        if not self.cap >= 1.0:
            raise ValueError(f"`cap` is {self.cap}, must be at least 1")

    def __call__(self, trainer_logprobs_BT: Tensor, engine_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Compute the weights; see `EngineCorrection`."""
        logprobs = _both(trainer_logprobs_BT, engine_logprobs_BT, mask_BT, self.per_sequence)
        return truncated_importance_weights(*logprobs, cap=self.cap).expand(mask_BT.shape)


@dataclass(frozen=True)
class MaskedWeights(EngineCorrection):
    """The ratio inside [low, high], else 0."""

    low: float = 0.5
    "Smallest ratio that is kept; in [0, 1]."
    high: float = 5.0
    "Largest ratio that is kept; at least 1."
    per_sequence: bool = False
    "Whether there is one ratio per completion, the product over its tokens; it is kept or left out as a whole."

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= 1.0 <= self.high:
            raise ValueError(f"`low` is {self.low} and `high` {self.high}, must satisfy 0 <= low <= 1 <= high")

    def __call__(self, trainer_logprobs_BT: Tensor, engine_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Compute the weights; see `EngineCorrection`."""
        logprobs = _both(trainer_logprobs_BT, engine_logprobs_BT, mask_BT, self.per_sequence)
        return masked_importance_weights(*logprobs, low=self.low, high=self.high).expand(mask_BT.shape)


def _ratios(trainer_logprobs_BT: Tensor, engine_logprobs_BT: Tensor) -> Tensor:
    differences_BT = at_least_float32(trainer_logprobs_BT.detach()) - at_least_float32(engine_logprobs_BT)
    return differences_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _both(trainer_BT: Tensor, engine_BT: Tensor, mask_BT: Tensor, per_sequence: bool) -> tuple[Tensor, Tensor]:
    trainer_BT, engine_BT = masked(trainer_BT, mask_BT), masked(engine_BT, mask_BT)
    if per_sequence:
        return trainer_BT.sum(-1, keepdim=True), engine_BT.sum(-1, keepdim=True)
    return trainer_BT, engine_BT
