"""One arm of a study against another: tests over problems and seeds, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study_results import BASE, Result, StudyPlan, Table, by_problem_and_seed, markdown_table

from maxk_lightning.evaluation.comparison import ALPHA
from maxk_lightning.evaluation.crossed import CrossedTest, crossed_test
from maxk_lightning.evaluation.estimates import Metric
from maxk_lightning.evaluation.paired import holm


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One arm against another at one k."""

    arm: str
    "Arm whose gain it is."
    against: str
    "Arm over which it gains."
    k: int
    "Number of samples k of which the best is taken."
    test: CrossedTest
    "Test of arm minus against."


def pairs_against(
    arms: Sequence[str], against: Sequence[str], known: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """List (arm, other) for every trained arm and all that it is tested against, no pair the other way round as well.

    Args:
        arms: Arms that have results.
        against: Arms that they are tested against.
        known: Further pairs, which are not listed the other way round either.
    """
    pairs: list[tuple[str, str]] = []
    for pair in ((arm, other) for other in against for arm in arms if arm != BASE):
        if pair[::-1] not in [*pairs, *known]:
            pairs.append(pair)
    return pairs


def comparisons(
    plan: StudyPlan,
    found: Mapping[str, Mapping[int, Result]],
    planned: Table,
    metric: Metric = "max_at_k",
    ks: Sequence[int] = (),
) -> list[Comparison]:
    """Make the tests of a table over the seeds that both arms have, at the tested ks or at others; no pair twice."""
    tuned_alike = [(arm, plan.tuned_as(arm)) for arm in found]
    pairs = pairs_against(list(found), planned.against, tuned_alike)
    tests = []
    for arm, other in dict.fromkeys(pairs + tuned_alike):
        seeds = sorted(found[arm].keys() & found.get(other, {}).keys())
        if arm == other or not seeds:
            continue
        common_ks = set[int].intersection(*(set(found[a][seed].ks) for a in (arm, other) for seed in seeds))
        for k in sorted(common_ks.intersection(ks or plan.test_ks)):
            ours, theirs = (by_problem_and_seed([found[a][seed] for seed in seeds], k, metric) for a in (arm, other))
            tests.append(Comparison(arm=arm, against=other, k=k, test=crossed_test(ours - theirs)))
    return tests


def test_table(plan: StudyPlan, tests: Sequence[Comparison], measure: str) -> str:
    """Print differences with intervals, in bold where the corrected p-value is below 5 %."""
    corrected = holm([comparison.test.p_value for comparison in tests])
    cells: dict[tuple[str, str], list[str]] = {}
    for comparison, p in zip(tests, corrected, strict=True):
        test = comparison.test
        difference = f"**{test.difference:+.3f}**" if p < ALPHA else f"{test.difference:+.3f}"
        p_text = "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")
        cell = f"{difference} [{test.low:+.3f}, {test.high:+.3f}], p {p_text}"
        cells.setdefault((comparison.against, comparison.arm), []).append(cell)
    heads = ["against", "method", *(f"{measure}@{k}" for k in sorted({comparison.k for comparison in tests}))]
    rows = [[plan.label(against), plan.label(arm), *row] for (against, arm), row in cells.items()]
    return markdown_table(heads, rows, "---")
