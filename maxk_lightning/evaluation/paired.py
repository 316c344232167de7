"""Is one run better than another? Paired tests over the problems that both were evaluated on.

Shapes: P problems that both runs have, K values of k. NaN: a k that one of the runs has too few samples for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from maxk_lightning.evaluation.bootstrap import Floats, bootstrap
from maxk_lightning.evaluation.estimates import LEVEL, Metric, columns_by_problems, ladder, per_problem
from maxk_lightning.evaluation.realised import PREFIX
from maxk_lightning.evaluation.runs import Run

DECIMALS = 12
"Decimals that differences are rounded to: equal rewards must tie, whatever the last bit of a float64 sum says."


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """The paired test at one k. Differences are other minus baseline."""

    k: int
    "Number of samples k of which the best is taken."
    baseline: str
    "Name of the baseline."
    other: str
    "Name of the other run."
    num_problems: int
    "Problems with at least k samples in both runs."
    num_gained: int
    "Problems on which other does better."
    num_lost: int
    "Problems on which other does worse."
    difference: float
    "Mean difference over problems."
    low: float
    "Lower end of its bootstrap interval over problems; NaN for one problem."
    high: float
    "Upper end of the interval."
    effect_size: float
    "Matched-pairs rank-biserial correlation in [-1, 1]: how one-sided the signed ranks are; 0 without a difference."
    wilcoxon_p: float
    "p-value of the two-sided Wilcoxon signed-rank test; problems without a difference are left out, as in the paper."
    bootstrap_p: float
    "p-value of the two-sided paired bootstrap test of the mean difference."
    wilcoxon_holm: float = 1.0
    "`wilcoxon_p` corrected (Holm 1979) for the ks that were tested together."
    bootstrap_holm: float = 1.0
    "`bootstrap_p` corrected likewise."


def paired_tests(baseline: Run, other: Run, metric: Metric) -> list[PairedTest]:
    """Test two runs at every k that both reach, corrected for the number of ks."""
    ks = ladder(min(_most_samples(baseline.rewards), _most_samples(other.rewards)))
    return correct(paired_columns((baseline.name, other.name), ks, differences(baseline, other, metric, ks)))


def best_against_second(runs: Sequence[Run], metric: Metric) -> list[PairedTest]:
    """Make the paper's test: at every k the best run against the second best, corrected for the number of ks.

    The winner is chosen on the data that it is tested on, so p-values are too small when many runs are close.
    """
    tests: list[PairedTest] = []
    for k in ladder(min(_most_samples(run.rewards) for run in runs)):
        value_of = {run.name: point.value for run in runs for point in run.curve(metric) if point.k == k}
        ranked = sorted((run for run in runs if run.name in value_of), key=lambda run: -value_of[run.name])
        if len(ranked) > 1:
            best, second = ranked[:2]
            tests += paired_columns((second.name, best.name), [k], differences(second, best, metric, [k]))
    return correct(tests)


def differences(baseline: Run, other: Run, metric: Metric, ks: Sequence[int]) -> Floats:
    """Compute other minus baseline on every problem that both have: [P, K]; NaN where one has no value."""
    shared = [id_ for id_ in baseline.rewards if id_ in other.rewards]
    before, after = (_values(run, shared, metric, ks) for run in (baseline, other))
    return np.round(after - before, DECIMALS)


def _values(run: Run, problems: Sequence[str], metric: Metric, ks: Sequence[int]) -> Floats:
    """Values of these problems at every k; NaN where there is none."""
    if not metric.startswith(PREFIX):
        return per_problem({id_: run.rewards[id_] for id_ in problems}, metric, ks)
    realised = run.realised[metric.removeprefix(PREFIX)]
    places = {point.k: place for place, point in enumerate(realised.curve)}
    none = [None] * len(realised.curve)
    rows = [[realised.problems.get(id_, none)[places[k]] if k in places else None for k in ks] for id_ in problems]
    return np.array(rows, dtype=np.float64).reshape(len(problems), len(ks))


def paired_columns(names: tuple[str, str], ks: Sequence[int], differences_PK: Floats) -> list[PairedTest]:
    """Test every column, uncorrected; ks that no problem reaches are left out."""
    tests: list[PairedTest] = []
    for columns in columns_by_problems(differences_PK):
        present = differences_PK[~np.isnan(differences_PK[:, columns[0]])][:, columns]
        if not len(present):
            continue
        resampled = bootstrap(present)
        low_K, high_K = resampled.interval(LEVEL)
        p_K = resampled.p_value()
        for i, column in enumerate(columns):
            change = present[:, i]
            tests.append(
                PairedTest(
                    k=ks[column],
                    baseline=names[0],
                    other=names[1],
                    num_problems=len(change),
                    num_gained=int((change > 0).sum()),
                    num_lost=int((change < 0).sum()),
                    difference=float(change.mean()),
                    low=float(low_K[i]),
                    high=float(high_K[i]),
                    effect_size=rank_biserial(change),
                    wilcoxon_p=wilcoxon_p(change),
                    bootstrap_p=float(p_K[i]),
                )
            )
    return tests


def wilcoxon_p(change_P: Floats) -> float:
    """Compute the two-sided p-value of the signed-rank test; 1 where nothing changed."""
    return float(stats.wilcoxon(change_P).pvalue) if change_P.any() else 1.0


def rank_biserial(change_P: Floats) -> float:
    """Compute (rank sum of gains - rank sum of losses) / their total (Kerby 2014).

    >>> rank_biserial(np.array([0.3, 0.2, -0.1, 0.0]))
    0.6666666666666666
    """
    moved = change_P[change_P != 0]
    if not len(moved):
        return 0.0
    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def correct(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Fill in the corrected p-values of tests that belong together."""
    wilcoxon = holm([test.wilcoxon_p for test in tests])
    resampled = holm([test.bootstrap_p for test in tests])
    return [
        replace(test, wilcoxon_holm=p, bootstrap_holm=q) for test, p, q in zip(tests, wilcoxon, resampled, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction: it bounds the chance of any false rejection, however the tests depend.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [1.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = running
    return corrected


def _most_samples(rewards: Mapping[str, Sequence[float]]) -> int:
    return max((len(group) for group in rewards.values()), default=0)
