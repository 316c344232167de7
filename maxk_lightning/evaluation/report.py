"""report.html: one page, for a colleague on a laptop and for a glance on a phone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from maxk_lightning.evaluation.comparison import ALPHA, Comparison
from maxk_lightning.evaluation.estimates import CORRECT_AT, METRICS
from maxk_lightning.evaluation.figures import label_of, to_svg
from maxk_lightning.evaluation.html import Cell, figure, number, page, sortable
from maxk_lightning.evaluation.markdown import TEST_HEADINGS, cells_of, questions
from maxk_lightning.evaluation.origin import ORIGIN_HEADINGS
from maxk_lightning.evaluation.paired import PairedTest
from maxk_lightning.evaluation.plots import Plot
from maxk_lightning.evaluation.runs import Run
from maxk_lightning.evaluation.samples import Sample
from maxk_lightning.evaluation.tables import Table, cell_text

NUM_PROBLEMS_SHOWN = 12
"Number of problems whose programs are shown: those whose solve rates differ most, and some that nobody solves."
NUM_UNSOLVED_SHOWN = 3
LONG_TEXT = 16
"Characters of a cell that may be broken into lines."
MAX_CHARACTERS = 4000
"Characters of a completion that are shown; the whole is in samples.jsonl."


def html_report(comparisons: Sequence[Comparison], plots: Mapping[str, Sequence[Plot]]) -> str:
    """Write the page; `plots` are the figures of each benchmark."""
    names = list(dict.fromkeys(run.name for comparison in comparisons for run in comparison.runs))
    title = f"Best-of-N: {' / '.join(names)}"
    body = [f"<h1>{escape(title)}</h1>", _explanation(), _contents(comparisons)]
    for comparison in comparisons:
        body += _benchmark(comparison, plots[comparison.benchmark])
    return page(title, body)


def _explanation() -> str:
    return (
        '<p class="soft">max@k is the expected best reward of k samples, pass@k the chance that at least one of k '
        "samples passes every test; both are unbiased estimates, averaged over problems. distinct@k, where "
        "problems were solved in several ways, counts the different behaviours among the fully correct of k samples. "
        "Best of k by a selector, where it was measured, is what is realised of max@k when that selector chooses one "
        "of k samples without the hidden tests. Bands and brackets are 95% bootstrap intervals over problems, not "
        "corrected for the number "
        "of ks; verdicts are rank tests that are: an "
        "interval may exclude 0 where the verdict is &quot;not significant&quot;. Every run is compared with the one "
        "given first. Headings sort their table.</p>"
    )


def _contents(comparisons: Sequence[Comparison]) -> str:
    """Links to the benchmarks, where there are several."""
    if len(comparisons) == 1:
        return ""
    names = [escape(comparison.benchmark) for comparison in comparisons]
    return "<nav>" + " ".join(f'<a href="#{name}">{name}</a>' for name in names) + "</nav>"


def _benchmark(comparison: Comparison, plots: Sequence[Plot]) -> list[str]:
    name = escape(comparison.benchmark)
    parts = [f'<h2 id="{name}">{name}</h2>']
    parts += ["<ul>", *(f"<li>{escape(sentence)}</li>" for sentence in comparison.conclusions()), "</ul>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in comparison.notes]
    if comparison.origins:
        parts += ["<h3>Runs</h3>", _origins(comparison)]
    drawings = [figure(to_svg(plot.figure), plot.caption) for plot in plots]
    parts += [_side_by_side(drawings[: len(METRICS)])]
    for table in comparison.tables:
        parts += [f"<h3>{escape(table.title)}</h3>", _table(table)]
    parts += [f'<p class="soft">{comparison.legend}</p>']
    if comparison.published:
        parts += ["<h3>Published numbers (arXiv:2510.23393)</h3>", *map(_table, comparison.published)]
    parts += ["<h3>Completions</h3>", _completions(comparison.runs)]
    parts += [_side_by_side(drawings[len(METRICS) :])]
    parts += ["<h3>Paired tests</h3>", _tests_explanation()]
    for question, metric, tests in questions(comparison):
        parts.append(
            f"<details><summary>{escape(question)}, {label_of(metric)}</summary><div>{_tests(tests)}</div></details>"
        )
    parts += ["<h3>Problem by problem</h3>", _problems(comparison)]
    parts += ["<h3>Sample programs</h3>", *_programs(comparison)]
    return parts


def _side_by_side(drawings: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(drawings)}</div>'


def _table(table: Table) -> str:
    rows = [
        [
            Cell(text=row.name, value=row.name),
            *(
                Cell(
                    text=cell_text(row, k),
                    value=row.points[k].value if k in row.points else None,
                    css=row.marks.get(k, ""),
                )
                for k in table.ks
            ),
        ]
        for row in table.rows
    ]
    return sortable([label_of(table.metric), *(f"k={k}" for k in table.ks)], rows)


def _origins(comparison: Comparison) -> str:
    rows = [
        [Cell(text=cell, value=cell, css="long" if len(cell) > LONG_TEXT else "") for cell in row]
        for row in comparison.origins
    ]
    return sortable(ORIGIN_HEADINGS, rows, css="scroll words")


def _completions(runs: Sequence[Run]) -> str:
    headings = [
        "run", "problems", "samples", "not scored", "truncated", "no code", "tokens", "entropy (nats)",
        "distinct", "generate (s)", "score (s)", "analyse (s)",
    ]  # fmt: skip
    rows = [
        [
            Cell(text=run.name, value=run.name),
            number(run.summary.num_problems, "d"),
            number(run.summary.num_samples, "d"),
            number(run.summary.num_missing, "d"),
            number(run.summary.truncation_rate, ".1%"),
            number(run.summary.no_code_rate, ".1%"),
            number(run.summary.mean_tokens, ".1f"),
            number(run.summary.mean_entropy),
            number(run.summary.distinct_rate, ".1%"),
            number(run.summary.seconds.generating, ".1f"),
            number(run.summary.seconds.scoring, ".1f"),
            number(run.summary.seconds.analysing, ".1f"),
        ]
        for run in runs
    ]
    return sortable(headings, rows)


def _tests_explanation() -> str:
    return (
        '<p class="soft">Two-sided, over problems that both runs have. p-values are corrected for the number of ks '
        f"(Holm); * marks those below {ALPHA}. Effect: matched-pairs rank-biserial correlation, from -1 (every change "
        "is a loss) to 1 (every change is a gain).</p>"
    )


def _tests(tests: Sequence[PairedTest]) -> str:
    rows = []
    for test in tests:
        p_values = [test.wilcoxon_holm, test.bootstrap_holm]
        numbers = [test.difference, test.low, test.num_gained, test.effect_size, *p_values]
        values: list[float | str] = [test.k, test.other, test.baseline, *numbers]
        rows.append([Cell(text=text, value=value) for text, value in zip(cells_of(test), values, strict=True)])
    return sortable(TEST_HEADINGS, rows)


def _problems(comparison: Comparison) -> str:
    base = comparison.baseline.solve_rates
    headings = ["problem", *(f"solve rate, {run.name}" for run in comparison.runs)]
    headings += [f"{run.name} - {comparison.baseline.name}" for run in comparison.others]
    headings += [f"best reward, {run.name}" for run in comparison.runs]
    best = [{problem.id: problem.best_reward for problem in run.summary.problems} for run in comparison.runs]
    rows = []
    for id_ in _problem_ids(comparison):
        rates = [run.solve_rates.get(id_) for run in comparison.runs]
        changes = [None if id_ not in base or rate is None else rate - base[id_] for rate in rates[1:]]
        rows.append(
            [
                Cell(text=id_, value=id_),
                *map(number, rates),
                *(number(change, "+.3f") for change in changes),
                *(number(of_run.get(id_)) for of_run in best),
            ]
        )
    return sortable(headings, rows, css="scroll tall")


def _problem_ids(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(problem.id for run in comparison.runs for problem in run.summary.problems))


def _programs(comparison: Comparison) -> list[str]:
    """Statement, and best and most common failing program of every run, where runs differ most."""
    return [
        f"<details><summary>{escape(id_)}: {escape(_rates_text(comparison.runs, id_))}</summary><div>"
        f"{_statement(comparison, id_)}"
        f'<div class="programs">{"".join(_run_programs(run, id_) for run in comparison.runs)}</div></div></details>'
        for id_ in chosen_problems(comparison)
    ]


def _statement(comparison: Comparison, id_: str) -> str:
    texts = [run.statements[id_] for run in comparison.runs if id_ in run.statements]
    return f'<p class="statement">{escape(texts[0][:MAX_CHARACTERS])}</p>' if texts else ""


def chosen_problems(comparison: Comparison) -> list[str]:
    """Choose the problems whose solve rates differ most between runs, then some that no run solves."""
    spread_of: dict[str, float] = {}
    unsolved = []
    for id_ in _problem_ids(comparison):
        rates = [run.solve_rates[id_] for run in comparison.runs if id_ in run.solve_rates]
        if rates and max(rates) > 0:
            spread_of[id_] = max(rates) - min(rates)
        elif rates:
            unsolved.append(id_)
    ranked = sorted(spread_of, key=lambda id_: -spread_of[id_])
    num_unsolved = min(len(unsolved), NUM_UNSOLVED_SHOWN)
    return ranked[: NUM_PROBLEMS_SHOWN - num_unsolved] + unsolved[:num_unsolved]


def _rates_text(runs: Sequence[Run], id_: str) -> str:
    return ", ".join(f"{run.name} {run.solve_rates[id_]:.1%}" for run in runs if id_ in run.solve_rates)


def _run_programs(run: Run, id_: str) -> str:
    scored = [sample for sample in run.samples.get(id_, ()) if sample.reward is not None]
    if not scored:
        return f"<div><h4>{escape(run.name)}</h4><p>no scored sample</p></div>"
    rewards = [sample.reward or 0.0 for sample in scored]
    best = scored[rewards.index(max(rewards))]
    parts = [_program("best of " + str(len(scored)), best)]
    failing = [sample for sample in scored if (sample.reward or 0.0) < CORRECT_AT and sample is not best]
    if failing:
        text, count = Counter(sample.completion for sample in failing).most_common(1)[0]
        example = next(sample for sample in failing if sample.completion == text)
        parts.append(_program(f"most common failure, {count} times", example))
    return f"<div><h4>{escape(run.name)}</h4>{''.join(parts)}</div>"


def _program(title: str, sample: Sample) -> str:
    verdicts = "".join(
        f'<span class="verdict {verdict}">{verdict.replace("_", " ")} x {count}</span>'
        for verdict, count in Counter(sample.verdicts).items()
    )
    text = sample.completion[:MAX_CHARACTERS] + ("\n[...]" if len(sample.completion) > MAX_CHARACTERS else "")
    reward = "none" if sample.reward is None else f"{sample.reward:.3f}"
    return (
        f'<p class="soft">{escape(title)}: reward {reward}, {sample.num_tokens} tokens, sample {sample.sample}</p>'
        f"<div>{verdicts}</div><pre>{escape(text)}</pre>"
    )
