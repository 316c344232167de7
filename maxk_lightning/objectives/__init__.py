"""Objectives: from the rewards of a group to the credits that multiply grad log pi.

Which one to choose
===================

**What will the user do with the model?** Draws k samples and keeps the best: train for that k. Draws one: `RLOO`, which
is max@1 without bias. Does not know yet: `WeightedObjectives` of a few k, or a `Staged` schedule from large to small k.
Training for a k above the one in use costs quality at small k; below it costs diversity.

**How large a group?** n is `num_completions`. max@k needs k <= n and learns best from n of at least 2k: with n = k a
group is a single subset, only its best sample differs from the others, and every baseline but `loo1` is refused.

**The pair.** `MaxAtK(k)` with `losses.CISPO()`: on-policy credits, and one bounded ratio per token. It is unbiased in
the first PPO iteration, and in later ones its cosine is within .02 of the best estimate of max@k, for every n, k,
reward and kind of drift that was tried (`docs/sequence_study.md`). The baselines of `MaxAtK`; all are unbiased except
the last:

- `centred` (default): pulls up what helps a subset and pushes down what does not; sums to zero in every group; lowest
  variance for k below about n / 2. Needs k < n.
- `loo1`: credits only samples that beat the rest of a subset and never pushes one down; as good as `centred` at
  k = n / 2, and the choice for k close to n.
- `none`: for checks; its variance grows with the level of the rewards.
- `zscore` (the paper's "BoN mean"): a direction without a scale; easy prompts weigh as much as hard ones.

**Why not credits with sequence ratios?** After the first optimizer step the policy differs from the one that sampled.
Log-ratios add up over the tokens of a completion, and the ratio of a subset is a product of k of those: with the 110
tokens of a small language model one Adam step of 1e-5 spreads log rho by 1.8. Cosine with the true max@k gradient on
sequences of 60 tokens, by the standard deviation of log rho (means over two kinds of policy, dense and sparse rewards,
four kinds of drift; `python scripts/sequence_study.py --out docs` has all pairs, bias, variance and largest gradients):

| objective x loss | n = 8, k = 4: 0 | .5 | 1 | 2 | n = 32, k = 8: 0 | .5 | 1 | 2 |
|---|---|---|---|---|---|---|---|---|
| **`MaxAtK` x `CISPO`** | .74 | **.77** | **.78** | **.78** | .74 | **.77** | **.78** | **.78** |
| `SetAdvantage`, fraction .9 x `CISPO` | .74 | .76 | .77 | .78 | .74 | .76 | .78 | .78 |
| `SetAdvantage`, fraction .7 x `CISPO` | .74 | .76 | .77 | .77 | .74 | .76 | .77 | .77 |
| `SetAdvantage`, untempered x `CISPO` | .74 | .75 | .76 | .75 | .74 | .73 | .71 | .68 |
| `MaxAtK` x `ScoreFunction`, ratios ignored | .74 | .74 | .73 | .69 | .74 | .74 | .73 | .69 |
| `ExactMaxAtK`, ratio_clip 1.5 | .74 | .70 | .67 | .61 | .74 | .69 | .67 | .63 |
| `ExactMaxAtK`, ratio_clip 2 | .74 | .68 | .61 | .51 | .74 | .66 | .61 | .54 |
| `ExactMaxAtK`, self-normalised, no clip | .74 | .70 | .62 | .30 | .74 | .67 | .58 | .33 |
| `ExactMaxAtK`, no clip | .74 | .65 | .47 | .19 | .74 | .62 | .46 | .21 |
| `OffPolicyMaxAtK`, LOO-1, clamp .2 | .74 | .69 | .56 | .18 | .74 | .68 | .57 | .16 |
| `OffPolicyMaxAtK`, LOO-1, clamp .5 | .74 | .68 | .54 | .14 | .74 | .62 | -.12 | -.16 |
| `OffPolicyMaxAtK`, LOO-1, no clamp | .74 | .66 | .52 | .24 | .74 | .63 | .48 | .21 |
| `MaxAtK` x `ClippedSurrogate`, .2 | .74 | .51 | .04 | -.27 | .74 | .51 | .05 | -.27 |

- **By drift.** At 0 (one optimizer step per rollout, or the first of several) all are the same. At any drift from .5 on
  correction by sequence ratios loses even to no correction at all, and correction by token ratios wins over both.
- **By n and k.** The recommendation is the same for n = 8 and 32, k = 4 and 8. Sequence ratios suffer most where k is
  large.
- **`SetAdvantage` never beat `MaxAtK`** by two standard errors in any of 192 combinations of policy, reward, drift, n
  and k; in about three of four it was worse by more than that, by .005 (fraction .9) to .05 (untempered) on average.
  It is here as the bounded form of the exact credit; prefer the simpler.
- **Avoid** `clamp: null` and `ratio_clip: null` on a language model: the largest estimate is 300 to 600 times the true
  gradient of the old policy where log rho spreads by .5, and 3e7 to 7e8 times at 2. With the defaults, .2 and 1.5, it
  stays below 6; they were the best bounds of those tried: a wider clamp is worse, because 1 + sum delta of a subset
  turns negative.
- Completions of one or a few tokens are different: log rho barely spreads, the subset's ratio is worth its variance,
  and `ExactMaxAtK` wins (`scripts/estimator_study.py`, the one-token study).
- `GRPO` x `CISPO` had the highest cosine with max@k of all, .80 to .81: in these toys the mean reward rises in nearly
  the same direction, and its estimate has less noise. Where the two aims differ, it follows the mean reward.

**More than the best of k.** The same law of subsets gives exact credits for other values of a k-subset, in the same
O(n k): `TopMMean` (the user keeps m of k), `SubsetQuantile`, `CVaR` (a tail, the lower one for what must not fail),
`RankWeighted` (any weighted sum of the sorted rewards), and `DistinctMaxAtK`, which adds a bonus for every different
behaviour among the correct samples of the subset, in O(n k) per behaviour. They are advantages for `losses.CISPO`, as
`MaxAtK` is. `ExactRatios(objective)` is to such an objective what `ExactMaxAtK` is to `MaxAtK`, and
`TemperedRatios(objective)` what `SetAdvantage` is. Behaviours come from the reward (`Score.behaviour`). Where every
test has one right output, fully correct programs all behave alike, and the bonus is for being right: it counts
different ways only where a checker accepts several outputs, or with `correct_at` below 1.

`OffPolicyMaxAtK` is the paper's first-order correction, for comparison with its tables; with its `mean` baseline it
also pushes away from the behaviour policy. `group_diagnostics` measures the drift of a group.

**Comparing with published methods?** `GRPO`, `DrGRPO`, `RLOO`, `BonMaxMean`, `BonMaxSecond`, `PassKTraining`, `MaxRL`
(binary rewards only), `RSGRPO`, `NSR` and `WReinforce` (what is not wholly correct is wrong), and `Entropic`
(TTT-Discover) are here under their names. They see no ratio, only rewards. `UniquenessWeighted` (uniqueness-aware RL)
sees behaviours too, where the authors ask a judge which samples are alike. DAPO's clip-higher is a loss,
`losses.ClippedSurrogate(clip_high=.28)`, an entropy bonus is `model.entropy_coef`; `configs/study_rivals` has all of
them as arms of one study. UCPO (arXiv:2605.00365) is not: it needs to know how likely each sample is.

**One policy for every k?** `ToldK([1, 2, 4, 8])` draws a k for every group, its prompt says so (`{k}` in
`data.template`), and the group gets the credits of that k; `evaluate --told_k same` asks for the k it reports. It may
be one of several `WeightedObjectives`.

**A k above n?** `PlugInMaxAtK(k)` draws from the group, and is biased; its docstring has the numbers. With replacement
little credit is left at a k far above n, with `draws: urn` more. A larger group with `MaxAtK` is the better use of
samples where it can be afforded.

Credits follow one scale (see `Objective`). Those with `includes_ratio` go with `losses.ScoreFunction`, the others with
`losses.CISPO` or another loss that has the ratio.
"""

from maxk_lightning.objectives.diagnostics import GroupDiagnostics, group_diagnostics
from maxk_lightning.objectives.distinct import DistinctMaxAtK, distinct_correct
from maxk_lightning.objectives.entropic import Entropic
from maxk_lightning.objectives.exact import ExactMaxAtK
from maxk_lightning.objectives.first_order import OffPolicyMaxAtK
from maxk_lightning.objectives.group import LOG_RATIO_LIMIT
from maxk_lightning.objectives.group_size import check_group_size
from maxk_lightning.objectives.idle import ZERO_CREDIT, is_idle
from maxk_lightning.objectives.negative import NSR, WReinforce
from maxk_lightning.objectives.objective import (
    UNKNOWN_BEHAVIOUR,
    GroupFacts,
    Objective,
    credits_of,
    needs_behaviours,
    told_ks,
)
from maxk_lightning.objectives.on_policy import MaxAtK, PassKTraining
from maxk_lightning.objectives.plug_in import PlugInMaxAtK
from maxk_lightning.objectives.rank_weighted import CVaR, RankWeighted, SubsetQuantile, TopMMean
from maxk_lightning.objectives.ratios import ExactRatios, TemperedRatios, tempering
from maxk_lightning.objectives.relative import GRPO, RLOO, RSGRPO, BonMaxMean, BonMaxSecond, DrGRPO, MaxRL
from maxk_lightning.objectives.schedule import (
    Mixture,
    Staged,
    WeightedObjectives,
    largest_k,
    largest_subset,
    objective_at,
    parts_of,
)
from maxk_lightning.objectives.set_advantage import SetAdvantage
from maxk_lightning.objectives.subset_objective import SubsetObjective
from maxk_lightning.objectives.told_k import ToldK
from maxk_lightning.objectives.uniqueness import UniquenessWeighted

__all__ = [
    "GRPO",
    "LOG_RATIO_LIMIT",
    "NSR",
    "RLOO",
    "RSGRPO",
    "UNKNOWN_BEHAVIOUR",
    "ZERO_CREDIT",
    "BonMaxMean",
    "BonMaxSecond",
    "CVaR",
    "DistinctMaxAtK",
    "DrGRPO",
    "Entropic",
    "ExactMaxAtK",
    "ExactRatios",
    "GroupDiagnostics",
    "GroupFacts",
    "MaxAtK",
    "MaxRL",
    "Mixture",
    "Objective",
    "OffPolicyMaxAtK",
    "PassKTraining",
    "PlugInMaxAtK",
    "RankWeighted",
    "SetAdvantage",
    "Staged",
    "SubsetObjective",
    "SubsetQuantile",
    "TemperedRatios",
    "ToldK",
    "TopMMean",
    "UniquenessWeighted",
    "WReinforce",
    "WeightedObjectives",
    "check_group_size",
    "credits_of",
    "distinct_correct",
    "group_diagnostics",
    "is_idle",
    "largest_k",
    "largest_subset",
    "needs_behaviours",
    "objective_at",
    "parts_of",
    "tempering",
    "told_ks",
]
