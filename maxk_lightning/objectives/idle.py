"""Which groups can get no credit at all, so that nothing need be computed for them.

Shapes: P prompts, N completions per prompt.
"""

import torch
from torch import Tensor

from maxk_lightning.objectives.objective import NO_FACTS, GroupFacts, Objective, credits_of

ZERO_CREDIT = 1e-12
"A group whose credits are all smaller than this gives no gradient."
PROBE_STDS = (0.0, 0.1, 1.0)
"Spreads of log rho at which an objective is tried."


def is_idle(objective: Objective, rewards_PN: Tensor, facts: GroupFacts = NO_FACTS) -> Tensor:
    """Whether all credits of a group are 0 at all ratios: is_idle_P, bool.

    Credits are polynomials in the ratios, piece by piece where ratios are bounded. One that is 0 at random ratios, near
    1 and far from it, is 0 everywhere (Schwartz and Zippel), but for a set of ratios of measure 0. All groups are tried
    at the same ratios, so that the answer for a group does not depend on the others.
    """
    generator = torch.Generator().manual_seed(0)
    noise_N = torch.randn(rewards_PN.shape[1], generator=generator, dtype=torch.float64)
    noise_PN = noise_N.to(rewards_PN.device).expand_as(rewards_PN)
    is_idle_P = torch.ones(len(rewards_PN), dtype=torch.bool, device=rewards_PN.device)
    for std in PROBE_STDS if len(rewards_PN) > 0 else ():
        credits_PN = credits_of(objective, rewards_PN, std * noise_PN, facts)
        is_idle_P &= (credits_PN.abs() < ZERO_CREDIT).all(1)
    return is_idle_P
