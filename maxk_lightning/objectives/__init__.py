"""Objectives: from the rewards of a group to the credits that multiply grad log pi.

Which one to choose
===================

**What will the user do with the model?** Draws k samples and keeps the best: train for that k. Draws one: `RLOO`, which
is max@1 without bias. Does not know yet: `WeightedObjectives` of a few k, or a `Staged` schedule from large to small k.
Training for a k above the one in use costs quality at small k; below it costs diversity.

**How large a group?** n is `num_completions`. max@k needs k <= n and learns best from n of at least 2k: with n = k a
group is a single subset, only its best sample differs from the others, and every baseline but `loo1` is refused.

**One PPO iteration per rollout (on-policy)?** `MaxAtK(k)`. Its baselines, all unbiased except the last:

- `centred` (default): pulls up what helps a subset and pushes down what does not; sums to zero in every group; lowest
  variance for k below about n / 2. Needs k < n.
- `loo1`: credits only samples that beat the rest of a subset and never pushes one down; the choice for k close to n.
- `none`: for checks; its variance grows with the level of the rewards.
- `zscore` (the paper's "BoN mean"): a direction without a scale; easy prompts weigh as much as hard ones.

**Several PPO iterations per rollout, or stale samples?** The policy has left the one that sampled, and the ratio of a
*subset* is a product of k sequence ratios. `ExactMaxAtK(k)` corrects for all of it at O(nk), without bias, and with
less noise than the alternatives. `OffPolicyMaxAtK` is the paper's first-order correction, for comparison with its
tables; with its `mean` baseline it also pushes away from the behaviour policy. `MaxAtK` in a clipped surrogate sees one
ratio per token, not the subset's, and loses most where n is much larger than k.

Cosine of the summed credits of 32 groups with the true gradient, 40 actions, 400 toys (`scripts/estimator_study.py`,
its figure `scripts/estimator_study.png` and its numbers beside it):

| n = 64, k = 8 | KL 0 | .01 | .1 | .3 | | n = 8, k = 4 | KL 0 | .01 | .1 | .3 |
|---|---|---|---|---|---|---|---|---|---|---|
| exact, centred | .99 | .99 | 1.0 | .99 | | | .94 | .95 | .95 | .93 |
| exact, LOO-1 | .99 | .99 | .99 | .99 | | | .93 | .93 | .93 | .93 |
| exact, self-normalised | .99 | .99 | .99 | .96 | | | .94 | .94 | .89 | .77 |
| PPO ratio x on-policy, no clip | .99 | .99 | .94 | .78 | | | .94 | .95 | .93 | .86 |
| ratios ignored | .99 | .98 | .86 | .65 | | | .94 | .93 | .85 | .70 |
| first order, LOO-1 | .99 | .99 | .92 | .70 | | | .93 | .94 | .94 | .82 |
| first order, mean baseline | .99 | .87 | .74 | .54 | | | .94 | .91 | .83 | .69 |
| first order, mean, clamp 0.2 | .99 | .80 | .59 | .39 | | | .94 | .89 | .75 | .58 |
| PPO ratio, clip 0.2 per sequence | .99 | .57 | .26 | -.03 | | | .94 | .56 | .11 | -.14 |

**Is the drift too large?** `group_diagnostics` says: keep |log E| below 1 and the standard deviation of log rho below
0.5 (its docstring has the measurements). Beyond, refresh the rollouts more often; `ratio_clip` and `self_normalise`
trade bias for bounded credits when that is not possible.

**Comparing with published methods?** `GRPO`, `DrGRPO`, `RLOO`, `BonMaxMean`, `BonMaxSecond`, `PassKTraining`, `MaxRL`
(binary rewards only) and `RSGRPO` are here under their names. They see no ratio, only rewards.

Credits follow one scale (see `Objective`). Those with `includes_ratio` go with `losses.ScoreFunction`, the others with
a surrogate such as `losses.ClippedSurrogate`.
"""

from maxk_lightning.objectives.diagnostics import GroupDiagnostics, group_diagnostics
from maxk_lightning.objectives.exact import ExactMaxAtK
from maxk_lightning.objectives.first_order import OffPolicyMaxAtK
from maxk_lightning.objectives.group import LOG_RATIO_LIMIT
from maxk_lightning.objectives.group_size import check_group_size
from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import MaxAtK, PassKTraining
from maxk_lightning.objectives.relative import GRPO, RLOO, RSGRPO, BonMaxMean, BonMaxSecond, DrGRPO, MaxRL
from maxk_lightning.objectives.schedule import Mixture, Staged, WeightedObjectives, largest_k, objective_at

__all__ = [
    "GRPO",
    "LOG_RATIO_LIMIT",
    "RLOO",
    "RSGRPO",
    "BonMaxMean",
    "BonMaxSecond",
    "DrGRPO",
    "ExactMaxAtK",
    "GroupDiagnostics",
    "MaxAtK",
    "MaxRL",
    "Mixture",
    "Objective",
    "OffPolicyMaxAtK",
    "PassKTraining",
    "Staged",
    "WeightedObjectives",
    "check_group_size",
    "group_diagnostics",
    "largest_k",
    "objective_at",
]
