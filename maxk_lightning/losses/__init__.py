"""From credits to a scalar loss: policy losses, KL penalties, engine correction, token normalisation."""

from maxk_lightning.losses.engine_correction import (
    EngineCorrection,
    MaskedWeights,
    TruncatedWeights,
    masked_importance_weights,
    truncated_importance_weights,
)
from maxk_lightning.losses.kl import kl_k1, kl_k2, kl_k3
from maxk_lightning.losses.normalisation import (
    Normalisation,
    StepCounts,
    token_weights,
    weights_by_constant,
    weights_by_sequence,
    weights_by_token,
)
from maxk_lightning.losses.policy_loss import (
    CISPO,
    ClippedSurrogate,
    LossTerms,
    PolicyLoss,
    ScoreFunction,
    SequenceClippedSurrogate,
    check_loss_fits,
)

__all__ = [
    "CISPO",
    "ClippedSurrogate",
    "EngineCorrection",
    "LossTerms",
    "MaskedWeights",
    "Normalisation",
    "PolicyLoss",
    "ScoreFunction",
    "SequenceClippedSurrogate",
    "StepCounts",
    "TruncatedWeights",
    "check_loss_fits",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "masked_importance_weights",
    "token_weights",
    "truncated_importance_weights",
    "weights_by_constant",
    "weights_by_sequence",
    "weights_by_token",
]
