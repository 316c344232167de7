"""The comparison of the runs on one benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maxk_lightning.evaluation.estimates import DISTINCT, METRICS, Metric
from maxk_lightning.evaluation.figures import label_of
from maxk_lightning.evaluation.origin import origin_cells
from maxk_lightning.evaluation.paired import PairedTest, best_against_second, paired_tests
from maxk_lightning.evaluation.realised import PREFIX
from maxk_lightning.evaluation.runs import NamedCurves, Run, published
from maxk_lightning.evaluation.tables import Table, table

ALPHA = 0.05
"Level below which a corrected p-value is called significant."


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs on one benchmark, each against the baseline."""

    benchmark: str
    "Name of the benchmark."
    baseline: Run
    "Run that the others are compared with."
    others: tuple[Run, ...]
    "Other runs, in the order given."
    tables: tuple[Table, ...]
    "Tables, one per metric, and distinct@k where a problem was solved in several ways."
    published: tuple[Table, ...]
    "Tables of the paper for this benchmark; empty for others."
    tests: Mapping[tuple[Metric, str], Sequence[PairedTest]]
    "Tests by metric and name of the other run."
    best_against_second: Mapping[Metric, Sequence[PairedTest]]
    "Tests of the paper's kind; empty for fewer than three runs, where they say nothing new."

    @property
    def runs(self) -> tuple[Run, ...]:
        """List the baseline, then the others."""
        return (self.baseline, *self.others)

    @property
    def notes(self) -> list[str]:
        """List what a reader must know before trusting the numbers."""
        notes = [f"{run.name}: {note}" for run in self.runs for note in run.summary.notes]
        for run in self.others:
            num_unshared = len(run.rewards.keys() ^ self.baseline.rewards.keys())
            if num_unshared:
                notes.append(
                    f"{num_unshared} problems are in only one of {self.baseline.name} and {run.name}: "
                    "they count in the tables, not in the tests."
                )
        return notes

    @property
    def legend(self) -> str:
        """Say what the marks of the tables mean, or why there are none."""
        if _have_same_problems(self.runs):
            return "Best in bold, second underlined."
        return "No best is marked: the rows are means over different problems."

    @property
    def origins(self) -> list[Sequence[str]]:
        """List policy, training and seeds of every run under `ORIGIN_HEADINGS`; nothing if they are known of no run."""
        if all(run.summary.origin is None for run in self.runs):
            return []
        return [origin_cells(run.name, run.summary.origin) for run in self.runs]

    def conclusions(self) -> list[str]:
        """Write one sentence per other run and metric."""
        return [f"{name}: {conclusion(tests, label_of(metric))}" for (metric, name), tests in self.tests.items()]


def compare_benchmarks(runs: Sequence[Run], baseline: str | None = None) -> list[Comparison]:
    """Compare runs on every benchmark that they were evaluated on; the first run is the baseline unless one is named.

    Raises:
        ValueError: no run has the baseline's name, the baseline was not evaluated on a benchmark, or shares no problem.
    """
    name = runs[0].name if baseline is None else baseline
    if name not in {run.name for run in runs}:
        raise ValueError(f"--baseline is {name}, must be one of {', '.join(dict.fromkeys(run.name for run in runs))}")
    comparisons = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        on_it = [run for run in runs if run.benchmark == benchmark]
        _check_statements(on_it)
        base = next((run for run in on_it if run.name == name), None)
        if base is None:
            raise ValueError(f"the baseline {name} was not evaluated on {benchmark}, as {on_it[0].path} was")
        comparisons.append(_compare(base, [run for run in on_it if run is not base]))
    return comparisons


def _check_statements(runs: Sequence[Run]) -> None:
    """Raise ValueError where one id names two problems: of another split, or of a file whose rows have moved."""
    known: dict[str, tuple[str, Run]] = {}
    for run in runs:
        for id_, statement in run.statements.items():
            earlier, first = known.setdefault(id_, (statement, run))
            if earlier != statement:
                raise ValueError(
                    f"{first.path} and {run.path} are evaluations of different problems on {run.benchmark}: the "
                    f"statement of id {id_!r} differs; give problems ids of their own, and evaluate again"
                )


def conclusion(tests: Sequence[PairedTest], label: str) -> str:
    """Say in words where the corrected signed-rank test sees a difference.

    Raises:
        ValueError: there is no test.
    """
    if not tests:
        raise ValueError("no problem has a scored sample in both runs")
    better = [test.k for test in tests if test.wilcoxon_holm < ALPHA and test.effect_size > 0]
    worse = [test.k for test in tests if test.wilcoxon_holm < ALPHA and test.effect_size < 0]
    ends = [tests[0], tests[-1]] if len(tests) > 1 else [tests[0]]
    changes = ", ".join(
        f"{label.replace('k', str(test.k), 1)} {test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
        for test in ends
    )
    kinds = [(word, ks) for word, ks in (("better", better), ("worse", worse)) if ks]
    base = tests[0].baseline
    verdicts = [f"significantly {word} than {base} at {_ks(ks, tests)}" for word, ks in kinds]
    return f"{changes}; {' and '.join(verdicts) or f'at no k significantly different from {base}'}"


def _ks(ks: Sequence[int], tests: Sequence[PairedTest]) -> str:
    if len(ks) == len(tests) > 2:
        return f"every k from {ks[0]} to {ks[-1]}"
    return f"k = {', '.join(map(str, ks))}"


def published_tables(benchmark: str) -> list[Table]:
    """Make the paper's tables of a data set as it prints them: rows with the same ks in one table."""
    rows = [run for run in published() if _letters(run.benchmark) in _letters(benchmark)]
    found = []
    for metric in METRICS:
        by_ks: dict[tuple[int, ...], list[NamedCurves]] = {}
        for run in rows:
            by_ks.setdefault(tuple(point.k for point in run.curve(metric)), []).append(run)
        found += [table(group, metric) for ks, group in by_ks.items() if ks]
    return found


def _compare(baseline: Run, others: Sequence[Run]) -> Comparison:
    runs = [baseline, *others]
    for other in others:
        if not baseline.rewards.keys() & other.rewards.keys():
            raise ValueError(f"{baseline.name} and {other.name} share no problem of {baseline.benchmark}")
    has_more = len(runs) > 2
    selectors = [name for name in baseline.realised if all(name in run.realised for run in runs)]
    metrics = [*METRICS, *(f"{PREFIX}{name}" for name in selectors)]
    counted = [DISTINCT] if any(run.summary.has_ways for run in runs) else []
    return Comparison(
        benchmark=baseline.benchmark,
        baseline=baseline,
        others=tuple(others),
        tables=tuple(table(runs, metric, is_marked=_have_same_problems(runs)) for metric in [*metrics, *counted]),
        published=tuple(published_tables(baseline.benchmark)),
        tests={(metric, other.name): paired_tests(baseline, other, metric) for metric in metrics for other in others},
        best_against_second={metric: best_against_second(runs, metric) for metric in metrics} if has_more else {},
    )


def _have_same_problems(runs: Sequence[Run]) -> bool:
    return all(run.rewards.keys() == runs[0].rewards.keys() for run in runs)


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
