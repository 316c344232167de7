"""What a critic of a study asks: how much of a gain is format, and what weights and temperatures give by themselves.

Shapes: P problems.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from study_results import SEEN, Job, Result, StudyPlan, controls_of, markdown_table, path_of, read

FORMAT_KS = (1, 4, 16)


class Row(Protocol):
    """An arm with its seeds."""

    name: str
    results: Sequence[Result]


def max_at_k_if_formed(result: Result, k: int) -> float:
    """Estimate max@k as if every sample ended before the limit and held a program.

    Draws k rewards with replacement from the samples of the problem that did: E[max] = sum of v (F(v)^k - F(v-)^k) over
    their rewards v with distribution function F. A problem without such a sample counts 0.
    """
    return float(np.mean([_expected_max(result.formed.get(problem, {}), k) for problem in result.rewards]))


def _expected_max(counts: Mapping[str, int], k: int) -> float:
    total, below, expected = sum(counts.values()), 0, 0.0
    for reward, count in sorted((float(text), count) for text, count in counts.items()):
        expected += reward * (((below + count) / total) ** k - (below / total) ** k)
        below += count
    return expected


def format_table(rows: Sequence[Row], base_name: str) -> str:
    """Shares of truncated samples and of samples without a program, and the share of each gain that they explain.

    Explained is what the base gains when its samples are drawn from its well-formed ones alone, over the gain of the
    arm; nothing where an arm gains less than .01.
    """
    (base,) = [row for row in rows if row.name == base_name]
    ks = [k for k in FORMAT_KS if k in base.results[0].ks]
    heads = ["method", "cut at the limit", "no program", *(f"max@{k} if well-formed" for k in ks)]
    heads += [f"of the gain in max@{k}, format" for k in ks]
    lines = []
    for row in rows:
        cells = [
            f"{_mean(result.summary[key] for result in row.results):.1%}" for key in ("truncation_rate", "no_code_rate")
        ]
        cells += [f"{_mean(max_at_k_if_formed(result, k) for result in row.results):.3f}" for k in ks]
        for k in ks:
            gain = _max_at_k(row, k) - _max_at_k(base, k)
            formed = _mean(max_at_k_if_formed(result, k) for result in base.results) - _max_at_k(base, k)
            cells.append(f"{formed / gain:.0%}" if gain >= 0.01 else "")
        lines.append([row.name, *cells])
    return markdown_table(heads, lines)


def control_table(plan: StudyPlan, results: Path, found: Mapping[str, Mapping[int, Result]]) -> str:
    """max@k of the arms with controls: as trained, then with other weights or temperatures; means over seeds.

    A control counts once all its seeds are there.
    """
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= plan.control_samples]
    rows = []
    for arm in plan.controls:
        of_seed = found.get(arm, {})
        trained = [of_seed[seed] for seed in plan.tables["main"].seeds[: plan.control_seeds] if seed in of_seed]
        if not trained:
            continue
        rows.append([plan.label(arm), *_cells(trained, ks)])
        paths_of: dict[str, list[Path]] = {}
        for job in (job for result in trained for job in controls_of(plan, result.job) if job.control != SEEN):
            paths_of.setdefault(_said(job), []).append(path_of(results, job))
        for control, paths in paths_of.items():
            if all(path.is_file() for path in paths):
                rows.append([f"{plan.label(arm)}, {control}", *_cells([read(path) for path in paths], ks)])
    return markdown_table(["policy", *(f"max@{k}" for k in ks)], rows)


def _said(job: Job) -> str:
    return f"{job.towards:.0%} of the base's weights" if job.temperature is None else f"temperature {job.temperature:g}"


def _cells(results: Sequence[Result], ks: Sequence[int]) -> list[str]:
    return [f"{np.mean([result.max_at_k_PK[:, result.ks.index(k)].mean() for result in results]):.3f}" for k in ks]


def _max_at_k(row: Row, k: int) -> float:
    return _mean(float(result.max_at_k_PK[:, result.ks.index(k)].mean()) for result in row.results)


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))
