"""Tables and figures of a plan's page from what scripts/study.py kept; nothing is run.

    python scripts/study_report.py            # writes them
    python scripts/study_report.py --check    # fails when the page says something else than the kept results

The page (docs/results.md, for configs/study) holds prose and, between `<!-- NAME -->` and `<!-- end -->`, what this
script writes there.

Shapes: P problems, S seeds, K values of k.
"""

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from study_comparisons import comparisons, test_table
from study_controls import control_table, format_table
from study_figures import age_figure, tradeoff_figure, training_figure
from study_groups import group_table
from study_programs import blind_table
from study_results import (
    BASE,
    CONFIGS,
    PROGRAMS,
    Result,
    Split,
    StudyPlan,
    Table,
    by_problem_and_seed,
    markdown_table,
    path_of,
    read,
    read_all,
    read_plan,
    seen_job,
    tuned_learning_rate,
    tuning_jobs,
    tuning_score,
)
from study_temperatures import (
    Tempered,
    temperature_comparisons,
    temperature_figure,
    temperature_table,
    tempered,
)

from maxk_lightning.evaluation import curves, published, table
from maxk_lightning.evaluation.crossed import crossed_test
from maxk_lightning.evaluation.estimates import DISTINCT, Estimate, Metric
from maxk_lightning.evaluation.figures import difference_curves, entropy_densities
from maxk_lightning.evaluation.prediction import PREDICTED
from maxk_lightning.evaluation.realised import PREFIX

PAPER_BENCHMARK = "CodeContests"
SPREAD_HEADS = ("entropy, nats", "different programs", "drift")
"Headings of the columns of `_spread`."
STALE = (
    ("age, steps", "rollout/age"),
    ("sampled otherwise, nats", "train/engine_log_ratio"),
    ("drift", "train/log_ratio_std"),
    ("effective subsets", "train/effective_subsets_fraction"),
    ("clipped tokens", "train/clip_fraction"),
)
"""Heading and tag of the columns of `stale_table`.

Sampled otherwise: mean over completions of |log pi_old - log pi_b|, where pi_b is the policy that sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An arm with all seeds of a table, as tables and figures of the package take it."""

    name: str
    "Label of the arm."
    benchmark: str
    "Benchmark, and how many seeds."
    results: Sequence[Result]
    "Results, one per seed."

    def curve(self, metric: Metric) -> Sequence[Estimate]:
        """Compute means over problems and seeds, with the interval over both; nothing beyond the samples."""
        points = []
        for k in [] if metric.startswith(PREDICTED) else self.results[0].ks:
            test = crossed_test(by_problem_and_seed(self.results, k, metric))
            points.append(Estimate(k=k, value=test.difference, low=test.low, high=test.high))
        return points

    def minus(self, other: "Method") -> Sequence[Estimate]:
        """Compute the gain over another method in max@k, with its interval."""
        points = []
        for k in self.results[0].ks:
            ours, theirs = (by_problem_and_seed(each.results, k) for each in (self, other))
            test = crossed_test(ours - theirs)
            points.append(Estimate(k=k, value=test.difference, low=test.low, high=test.high))
        return points


def finished(plan: StudyPlan, results: Path, planned: Table, split: Split = "test") -> dict[str, dict[int, Result]]:
    """Collect arm -> planned seed -> result at the tuned learning rate; arms without a result are left out."""
    rates = {arm: tuned_learning_rate(plan, results, planned.benchmark, arm, planned.tuned_for) for arm in planned.arms}
    found: dict[str, dict[int, Result]] = {arm: {} for arm in planned.arms}
    for result in read_all(results, planned.benchmark, split):
        if result.job.learning_rate == rates.get(result.job.arm) and result.job.seed in planned.seeds:
            found[result.job.arm][result.job.seed] = result
    return {arm: of_seed for arm, of_seed in found.items() if of_seed}


def methods(plan: StudyPlan, found: Mapping[str, Mapping[int, Result]], planned: Table) -> list[Method]:
    """List arms with the planned seeds that all of them have: a study under way has some arms further than others."""
    seeds = [seed for seed in planned.seeds if all(seed in of_seed for of_seed in found.values())]
    benchmark = f"{planned.benchmark}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    return [
        Method(name=plan.label(arm), benchmark=benchmark, results=[of_seed[seed] for seed in seeds])
        for arm, of_seed in found.items()
        if seeds
    ]


def tuning_table(plan: StudyPlan, results: Path, benchmark: str) -> str:
    """Print validation scores of all tries (max@1, max@k at the largest k), chosen ones in bold."""
    rates = plan.benchmarks[benchmark].learning_rates
    rows = []
    for arm in plan.arms:
        jobs = tuning_jobs(plan, benchmark, arm)
        if plan.tuned_as(arm) != arm or not all(path_of(results, job).is_file() for job in jobs):
            continue
        chosen = tuned_learning_rate(plan, results, benchmark, arm)
        cells = [""] * len(rates)
        for place, job in enumerate(jobs):
            result = read(path_of(results, job))
            first, last = (result.max_at_k_PK[:, result.ks.index(k)].mean() for k in (1, plan.tuning_ks[-1]))
            score = f"{tuning_score(plan, result):.3f} ({first:.3f}, {last:.3f})"
            cells[place] = f"**{score}**" if job.learning_rate == chosen and arm != BASE else score
        rows.append([plan.label(arm), *cells])
    return markdown_table(["method", *(f"{rate:g}" for rate in rates)], rows)


def blocks(plan: StudyPlan, results: Path) -> Iterator[tuple[str, str]]:
    """Yield name and content of every block of the page."""
    for benchmark in plan.benchmarks:
        yield f"tuning {benchmark}", tuning_table(plan, results, benchmark)
    for name, planned in plan.tables.items():
        found = finished(plan, results, planned)
        rows = methods(plan, found, planned)
        yield from _curve_blocks(name, rows, plan.test_ks)
        if any("rollout/age" in run.curves for row in rows for run in row.results):
            yield f"{name} stale", stale_table(plan, dict(zip(found, rows, strict=True)))
        tests = comparisons(plan, found, planned)
        if tests:
            yield f"{name} tests", test_table(plan, tests, "max")
        if rows and all(any(result.programs.values()) for row in rows for result in row.results):
            yield f"{name} programs tests", test_table(plan, comparisons(plan, found, planned, PROGRAMS), "programs")
        if rows and plan.selectors and _have_chosen(rows):
            yield f"{name} realised", realised_table(rows, plan.selectors, plan.test_ks)
            for selector in plan.selectors:
                tests = comparisons(plan, found, planned, f"{PREFIX}{selector}")
                yield f"{name} realised by {selector}", test_table(plan, tests, "realised")
        if plan.label(BASE) in [row.name for row in rows] and all(r.formed for row in rows for r in row.results):
            yield f"{name} format", format_table(rows, plan.label(BASE))
        if rows and all(any(result.blind.values()) for row in rows for result in row.results):
            yield f"{name} blind", blind_table(rows)
        if name == "main":
            yield from _seen_blocks(plan, results, planned, found)
            yield f"{name} controls", control_table(plan, results, found)
            yield from _temperature_blocks(plan, results, rows)
        if name in plan.grouped_tables and rows:
            yield f"{name} groups", group_table([(row.name, row.results) for row in rows], plan.test_ks[-1])
    yield "paper", str(table([run for run in published(PAPER_BENCHMARK) if run.curve("max_at_k")], "max_at_k"))


def _curve_blocks(name: str, rows: Sequence[Method], test_ks: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield name and content of the blocks that say what the arms of a table do, one by one."""
    if not rows:
        return
    yield name, str(table(rows, "max_at_k"))
    yield f"{name} pass", str(table(rows, "pass_at_k"))
    yield f"{name} cost", cost_table(rows)
    yield f"{name} spread", spread_table(rows)
    results = [result for row in rows for result in row.results]
    if all(result.correct for result in results):
        yield f"{name} distinct", str(table(rows, DISTINCT))
    if all(any(result.programs.values()) for result in results):
        yield f"{name} programs", str(table(rows, PROGRAMS))
    if any(result.told for result in results):
        yield f"{name} told", told_table(rows, test_ks)


def _seen_blocks(
    plan: StudyPlan, results: Path, planned: Table, found: Mapping[str, Mapping[int, Result]]
) -> Iterator[tuple[str, str]]:
    """Yield name and content of the blocks of the training problems, where they were sampled."""
    seed = planned.seeds[0]
    jobs = {arm: seen_job(plan, of_seed[seed].job) for arm, of_seed in found.items() if seed in of_seed}
    paths = {arm: path_of(results, job) for arm, job in jobs.items()}
    seen = {arm: {seed: read(path)} for arm, path in paths.items() if path.is_file()}
    if seen:
        rows = methods(plan, seen, planned)
        yield "main seen", str(table(rows, "max_at_k"))
        tests = comparisons(plan, seen, planned, ks=[*plan.test_ks, rows[0].results[0].ks[-1]])
        yield "main seen tests", test_table(plan, tests, "max")


def _temperature_blocks(plan: StudyPlan, results: Path, rows: Sequence[Method]) -> Iterator[tuple[str, str]]:
    """Yield name and content of the blocks of arms that were sampled at several temperatures."""
    arms = tempered_arms(plan, results, rows)
    if arms:
        yield "main temperatures", temperature_table(list(arms.values()))
        tests = temperature_comparisons(arms, plan.tables["main"].against, plan.control_ks)
        yield "main temperatures tests", test_table(plan, tests, "max")


def tempered_arms(plan: StudyPlan, results: Path, rows: Sequence[Method]) -> dict[str, Tempered]:
    """Collect the arms of a table that were sampled at several temperatures, all with the same seeds."""
    names = {plan.label(arm): arm for arm in plan.controls}
    found = {names[row.name]: tempered(plan, results, row) for row in rows if row.name in names}
    return {arm: each for arm, each in found.items() if each is not None}


def _have_chosen(rows: Sequence[Method]) -> bool:
    """Whether selectors were asked in every run."""
    return all(result.realised for row in rows for result in row.results)


def realised_table(rows: Sequence[Method], selectors: Sequence[str], ks: Sequence[int]) -> str:
    """What selectors realised of max@k: means over problems and seeds, and their shares of max@k."""
    lines = []
    for row in rows:
        best = {k: _mean_at(row, k) for k in ks}
        lines.append([row.name, "the best (max@k)", *(f"{best[k]:.3f}" for k in ks)])
        for selector in selectors:
            values = {k: _mean_at(row, k, f"{PREFIX}{selector}") for k in ks}
            lines.append(["", f"`{selector}`", *(f"{values[k]:.3f} ({values[k] / best[k]:.0%})" for k in ks)])
    return markdown_table(["method", "chosen by", *(f"k = {k}" for k in ks)], lines)


def told_table(rows: Sequence[Method], ks: Sequence[int]) -> str:
    """What a policy makes of the k that it is told: max@k of the samples that were told each, and how they differ."""
    lines = []
    for row in rows:
        for told_k in row.results[0].told:
            alone = replace(row, results=[result.told_only(told_k) for result in row.results])
            lines.append([row.name, told_k, *(f"{_mean_at(alone, k):.3f}" for k in ks), *_spread(alone)[:2]])
    return markdown_table(["method", "told", *(f"max@{k}" for k in ks), *SPREAD_HEADS[:2]], lines)


def _mean_at(row: Method, k: int, metric: Metric = "max_at_k") -> float:
    return float(by_problem_and_seed(row.results, k, metric).mean())


def spread_table(rows: Sequence[Method]) -> str:
    """How much the samples differ, and how far the policy drifts from the one that sampled.

    Drift is the standard deviation of log rho over the completions of a group, as a mean over groups and steps.
    """
    return markdown_table(["method", *SPREAD_HEADS], [[row.name, *_spread(row)] for row in rows])


def stale_table(plan: StudyPlan, rows: Mapping[str, Method]) -> str:
    """How old rollouts were when they were trained on, and what that did: means over rollouts and seeds.

    The first column is the share that an arm has of the max@k of the arm that it is tuned as, at the largest tested k.
    """
    k = plan.test_ks[-1]
    lines = []
    for arm, row in rows.items():
        if arm == BASE:
            continue
        fresh = rows.get(plan.tuned_as(arm))
        share = "" if fresh in (None, row) else f"{_mean_at(row, k) / _mean_at(fresh, k):.1%}"
        lines.append([row.name, share, *(_mean_of(row, tag) for _, tag in STALE)])
    return markdown_table(["method", f"of max@{k} at age 0", *(head for head, _ in STALE)], lines)


def _mean_of(row: Method, tag: str) -> str:
    values = [value for run in row.results for value in run.curves.get(tag, [])]
    return f"{statistics.mean(values):.3f}" if values else "-"


def cost_table(rows: Sequence[Method]) -> str:
    """Median seconds of the jobs, and the columns of `spread_table`."""
    lines = []
    for row in rows:
        fit, evaluate = (statistics.median(run.seconds[part] for run in row.results) for part in ("fit", "evaluate"))
        cells = [f"{fit:.0f}", f"{evaluate:.0f}", f"{3600 / (fit + evaluate):.0f}"]
        lines.append([row.name, *cells, *_spread(row)])
    return markdown_table(["method", "fit, s", "evaluate, s", "policies per hour and core", *SPREAD_HEADS], lines)


def _spread(row: Method) -> list[str]:
    entropies = [run.summary["mean_entropy"] for run in row.results if "mean_entropy" in run.summary]
    entropy = f"{statistics.mean(entropies):.3f}" if entropies else "-"
    distinct = statistics.mean(run.summary["distinct_rate"] for run in row.results)
    return [entropy, f"{distinct:.1%}", _mean_of(row, "train/log_ratio_std")]


def figures(plan: StudyPlan, results: Path) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure."""
    for name in plan.drawn_tables:
        rows = methods(plan, finished(plan, results, plan.tables[name]), plan.tables[name])
        if rows:
            yield f"{name}_curves", curves(rows, selectors=plan.selectors[:1] if _have_chosen(rows) else [])
            names = [row.name for row in rows]
            bases = [plan.label(arm) for arm in plan.tables[name].against if plan.label(arm) in names]
            if bases:
                yield f"{name}_differences", differences_figure(plan, rows, bases)
            counts = {row.name: sum((result.entropy_counts for result in row.results), Counter()) for row in rows}
            if all(counts.values()):  # an engine need not tell entropies
                yield f"{name}_entropy", entropy_densities(counts)
            trained = {row.name: row.results for row in rows if row.results[0].curves}
            yield f"{name}_training", training_figure(trained)
        if name == "main" and (arms := tempered_arms(plan, results, rows)):
            yield f"{name}_temperatures", temperature_figure(list(arms.values()), plan.control_ks)
    for name in plan.aged_tables:
        rows = methods(plan, finished(plan, results, plan.tables[name]), plan.tables[name])
        if rows:
            yield f"{name}_ages", age_figure({row.name: row.results for row in rows}, plan.test_ks)
    for benchmark in plan.benchmarks:
        if any((results / benchmark / "validation").glob("*.json")):
            yield f"{benchmark}_learning_rates", tradeoff_figure(plan, results, benchmark)


def differences_figure(plan: StudyPlan, rows: Sequence[Method], base_names: Sequence[str]) -> Figure:
    """Gains in max@k of trained arms over each arm they are tested against, with intervals over problems and seeds."""
    by_name = {row.name: row for row in rows}
    trained = [row for row in rows if row.name != plan.label(BASE)]
    bases = [by_name[name] for name in base_names]
    lines = {base.name: {row.name: row.minus(base) for row in trained if row is not base} for base in bases}
    return difference_curves(lines, list(by_name), "difference in max@k")


def filled(page: str, contents: Mapping[str, str]) -> str:
    """Replace the blocks of the page.

    Raises:
        ValueError: the page has a block that no content is known for.
    """

    def block(match: re.Match[str]) -> str:
        if match[1] not in contents:
            raise ValueError(f"the page has a block {match[1]!r}; known are {', '.join(contents)}")
        return f"<!-- {match[1]} -->\n{contents[match[1]]}<!-- end -->"

    return re.sub(r"<!-- ((?!end)[\w +]+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def write_report(plan: StudyPlan, results: Path) -> None:
    """Fill in the page and draw its figures."""
    page = plan.page.read_text(encoding="utf-8")
    plan.page.write_text(filled(page, dict(blocks(plan, results))), encoding="utf-8")
    for name, figure in figures(plan, results):
        figure.savefig(results / f"{name}.png")
    print(f"wrote {plan.page} and the figures under {results}")


def check_quick(plan: StudyPlan, quick: Path, results: Path) -> None:
    """Print the quick table, and hold its differences against the kept ones.

    Raises:
        SystemExit: an interval of the quick run does not meet the kept one of the same difference.
    """
    planned = plan.quick_table
    ours: dict[str, dict[int, Result]] = {arm: {} for arm in planned.arms}
    for result in read_all(quick, planned.benchmark, plan.quick_split):
        ours[result.job.arm][result.job.seed] = result
    print(table(methods(plan, ours, planned), "max_at_k"))
    whole = plan.tables["main"] if plan.quick_split == "test" else planned
    found = finished(plan, results, whole, plan.quick_split)
    kept = {(c.arm, c.against, c.k): c.test for c in comparisons(plan, found, whole)}
    num_apart = 0
    for comparison in comparisons(plan, ours, planned):
        test, other = comparison.test, kept[comparison.arm, comparison.against, comparison.k]
        is_apart = test.high < other.low or other.high < test.low
        num_apart += is_apart
        print(
            f"{plan.label(comparison.arm)} - {plan.label(comparison.against)}, max@{comparison.k}: "
            f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]; kept {other.difference:+.3f} "
            f"[{other.low:+.3f}, {other.high:+.3f}]{'  APART' if is_apart else ''}"
        )
    if num_apart:
        raise SystemExit(f"{num_apart} differences do not agree with the kept results")
    print("all differences agree with the kept results within their intervals")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is out of date")
    parser.add_argument("--plan", type=Path, default=CONFIGS, help="directory of the plan")
    args = parser.parse_args()
    plan = read_plan(args.plan)
    if not args.check:
        write_report(plan, plan.results)
        return
    page = plan.page.read_text(encoding="utf-8")
    if filled(page, dict(blocks(plan, plan.results))) != page:
        raise SystemExit(f"{plan.page} is out of date: run python scripts/study_report.py --plan {args.plan}")
    print(f"{plan.page} says what the kept results say")


if __name__ == "__main__":
    main()
