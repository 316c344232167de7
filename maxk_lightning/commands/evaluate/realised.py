"""`evaluate --select`: what is realised of max@k when one of k samples must be chosen without the hidden tests."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from maxk_lightning.evaluation.estimates import Estimate, curve_of, ladder
from maxk_lightning.evaluation.realised import Realised
from maxk_lightning.evaluation.samples import Sample, by_problem
from maxk_lightning.rollouts.scoring import answer_in_text
from maxk_lightning.selection import Candidate, Realisable, Then, realised_values
from maxk_lightning.types import Problem, Prompt


def realised_curves(
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    samples: Sequence[Sample],
    selectors: Sequence[Then],
    seed: int,
) -> dict[str, Realised]:
    """Name of the selector -> its curve. Samples without a reward are left out, as they are of max@k."""
    of_problem = by_problem([sample for sample in samples if sample.reward is not None])
    groups = [
        _realisable(problem, prompt, of_problem[problem.id])
        for problem, prompt in zip(problems, prompts, strict=True)
        if problem.id in of_problem
    ]
    ks = ladder(max((len(group.candidates) for group in groups), default=0))
    curves = {}
    for selector, rows in zip(selectors, realised_values(selectors, groups, ks, seed), strict=True):
        by_id = {
            group.problem.id: [None if math.isnan(value) else value for value in row]
            for group, row in zip(groups, rows, strict=True)
        }
        values_PK = np.array(rows).reshape(len(rows), len(ks))
        curves[selector.name] = Realised(curve=curve_of(values_PK, ks), problems=by_id)
    return curves


def print_realised(curves: Mapping[str, Realised], best: Sequence[Estimate], console: Console) -> None:
    """A column per selector beside max@k."""
    table = Table(title="realised best-of-k")
    for heading in ("k", "max@k", *curves):
        table.add_column(heading, justify="right")
    columns = [
        {point.k: f"{point.value:.3f}" for point in curve} for curve in (best, *(c.curve for c in curves.values()))
    ]
    for point in best:
        table.add_row(str(point.k), *(column.get(point.k, "") for column in columns))
    console.print(table)


def _realisable(problem: Problem, prompt: Prompt, samples: Sequence[Sample]) -> Realisable:
    candidates = [
        Candidate(text=answer_in_text(sample.completion, prompt) or "", mean_logprob=sample.mean_logprob)
        for sample in samples
    ]
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    return Realisable(problem=problem, candidates=candidates, rewards=rewards)
