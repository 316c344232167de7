"""Where max@k is gained and lost: problems of a built-in benchmark by what makes them hard.

A problem is hard where habits mislead the policy (`maxk_lightning.data.mistakes`), which training can undo for all
problems alike, or where a vague phrase has its less usual reading, which only different answers to it can find.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from study_results import Result, markdown_table

from maxk_lightning.data.mistakes import GOOD_CONTEXT_RIGHT, habit
from maxk_lightning.data.pipelines import OPERATIONS, VARIANTS, Pipeline, Variant, make_splits

GROUPS = ("usual readings, no misleading habit", "one", "two or more", "a less usual reading")


def group_of(pipeline: Pipeline, variant: Variant) -> str:
    """Name the group of a problem."""
    if any(p.rare_meaning == s.operation for p, s in zip(pipeline.phrases, pipeline.steps, strict=True)):
        return GROUPS[3]
    families = ("start", *(OPERATIONS[phrase.meaning].family for phrase in pipeline.phrases))
    habits = [habit(family, phrase, variant) for family, phrase in zip(families, pipeline.phrases, strict=False)]
    return GROUPS[min(2, sum(context.right < GOOD_CONTEXT_RIGHT for context in habits))]


@cache
def test_groups(benchmark: str) -> dict[str, str]:
    """Map every test problem to its group."""
    variant = VARIANTS[benchmark]
    return {problem.id: group_of(pipeline, variant) for problem, pipeline in make_splits(variant)["test"]}


def group_table(rows: Sequence[tuple[str, Sequence[Result]]], k: int) -> str:
    """Tabulate max@1 and max@k per group of test problems, means over seeds; rows are (label, one result per seed)."""
    first = rows[0][1][0]
    group_by_problem = test_groups(first.job.benchmark)
    counts = Counter(group_by_problem[problem] for problem in first.rewards)
    present = [group for group in GROUPS if counts[group]]
    heads = [f"max@1, max@{k} (test problems)", *(f"{group} ({counts[group]})" for group in present)]
    lines = []
    for label, results in rows:
        places = [0, results[0].ks.index(k)]
        mean_PK = np.mean([result.max_at_k_PK[:, places] for result in results], axis=0)
        groups = np.array([group_by_problem[problem] for problem in results[0].rewards_of])
        cells = [", ".join(f"{value:.3f}" for value in mean_PK[groups == group].mean(axis=0)) for group in present]
        lines.append([label, *cells])
    return markdown_table(heads, lines)
