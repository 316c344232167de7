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
from maxk_lightning.seeds import derive_seed
from maxk_lightning.selection import Candidate, Then, observe_all, realised_at_k
from maxk_lightning.types import Problem, Prompt


def realised_curves(
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    samples: Sequence[Sample],
    selectors: Sequence[Then],
    seed: int,
) -> dict[str, Realised]:
    """Name of the selector -> its curve. Samples without a reward are left out, as they are of max@k."""
    groups = by_problem([sample for sample in samples if sample.reward is not None])
    asked = [(problem, prompt) for problem, prompt in zip(problems, prompts, strict=True) if problem.id in groups]
    ks = ladder(max((len(groups[problem.id]) for problem, _ in asked), default=0))
    candidates = [[_candidate(sample, prompt) for sample in groups[problem.id]] for problem, prompt in asked]
    rewards = [[_reward(sample) for sample in groups[problem.id]] for problem, _ in asked]
    seeds = [derive_seed(seed, "select", problem.id) for problem, _ in asked]
    seen_by = observe_all(selectors, [problem for problem, _ in asked], candidates)
    curves = {}
    for selector, seen in zip(selectors, seen_by, strict=True):
        rows = [realised_at_k(each, group, ks, draws) for each, group, draws in zip(seen, rewards, seeds, strict=True)]
        of_problem = {
            problem.id: [None if math.isnan(value) else value for value in row]
            for (problem, _), row in zip(asked, rows, strict=True)
        }
        values_PK = np.array(rows).reshape(len(rows), len(ks))
        curves[selector.name] = Realised(curve=curve_of(values_PK, ks), problems=of_problem)
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


def _candidate(sample: Sample, prompt: Prompt) -> Candidate:
    return Candidate(text=answer_in_text(sample.completion, prompt) or "", mean_logprob=sample.mean_logprob)


def _reward(sample: Sample) -> float:
    assert sample.reward is not None
    return sample.reward
