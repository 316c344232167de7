"""From credits to a scalar loss: policy losses, KL penalties, engine correction, token normalisation.

Which policy loss to choose
===========================

One optimizer step per rollout: all losses have the same gradient (except `SequenceClippedSurrogate`, which averages
over tokens). Several, or stale samples: **`CISPO()`**, whose weights are those of truncated importance sampling per
token. Cosine with the true max@k gradient, on-policy credits, sequences of 60 tokens, n = 32, k = 8
(`python scripts/sequence_study.py --out docs`; other n and k are alike):

| loss, by the standard deviation of log rho | 0 | .5 | 1 | 1.5 | 2 |
|---|---|---|---|---|---|
| `CISPO`, cut 5 (default), or no cut | .74 | .77 | .78 | .79 | .78 |
| `CISPO`, cut 2 | .74 | .77 | .78 | .77 | .75 |
| `CISPO`, cut 1.5 | .74 | .76 | .76 | .75 | .73 |
| `ScoreFunction`: ratios ignored | .74 | .74 | .73 | .71 | .69 |
| `CISPO(ratio="prefix")`, cut 5 | .74 | .70 | .65 | .57 | .47 |
| `M2PO` | .74 | .69 | .62 | .20 | -.13 |
| sequence ratios truncated at 2 | .74 | .70 | .63 | .50 | .33 |
| `ClippedSurrogate`, clip-higher (.2, .28) | .74 | .61 | .30 | -.11 | -.24 |
| `ClippedSurrogate`, clip .2 | .74 | .51 | .05 | -.22 | -.27 |
| `SequenceClippedSurrogate` | .74 | .12 | .25 | .24 | .16 |

A clip of the surrogate is a brake, not an estimate: past it the gradient is cut off or turns against the drift. Choose
it to stay near the policy that sampled, not to follow the objective. Credits that contain the ratio go with
`ScoreFunction` and no other loss.
"""

from maxk_lightning.losses.engine_correction import (
    EngineCorrection,
    MaskedWeights,
    TruncatedWeights,
    masked_importance_weights,
    truncated_importance_weights,
)
from maxk_lightning.losses.entropy import AdaptiveEntropy, EntropyBonus
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
    M2PO,
    ClippedSurrogate,
    LossTerms,
    PolicyLoss,
    ScoreFunction,
    SequenceClippedSurrogate,
    check_loss_fits,
    loss_for,
)

__all__ = [
    "CISPO",
    "M2PO",
    "AdaptiveEntropy",
    "ClippedSurrogate",
    "EngineCorrection",
    "EntropyBonus",
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
    "loss_for",
    "masked_importance_weights",
    "token_weights",
    "truncated_importance_weights",
    "weights_by_constant",
    "weights_by_sequence",
    "weights_by_token",
]
