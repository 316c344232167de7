"""A job of the study that was run again, beside what is kept of it (`scripts/study.py --again`)."""

from collections.abc import Iterator, Sequence

import numpy as np
from study_results import Result, StudyPlan


def sentences(mine: Result, kept: Result, plan: StudyPlan) -> Iterator[str]:
    """Say how far two results of the same job agree: max@k, training curves, rewards of all samples."""
    job = kept.job
    yield f"{job.benchmark}, {plan.label(job.arm)}, learning rate {job.learning_rate:g}, seed {job.seed}:"
    yield f"{'':10}{'mine':>8}{'kept':>8}{'difference':>12}"
    for k in [k for k in plan.test_ks if k in kept.ks]:
        ours, theirs = (float(result.max_at_k_PK[:, result.ks.index(k)].mean()) for result in (mine, kept))
        yield f"{f'max@{k}':10}{ours:8.3f}{theirs:8.3f}{ours - theirs:+12.3f}"
    yield f"commit    {mine.commit}, kept {kept.commit}"
    yield f"machine   {_machine(mine)}, kept {_machine(kept)}"
    found = [("training curves", _curves_apart(mine, kept)), ("rewards of all samples", _rewards_apart(mine, kept))]
    yield from (f"{what}: {apart or 'identical'}" for what, apart in found if what == found[1][0] or kept.curves)
    if any(apart for _, apart in found):
        yield (
            "another processor, torch or number of threads rounds differently, and after some steps other tokens are "
            "drawn: differences as between two seeds are no contradiction"
        )


def _machine(result: Result) -> str:
    return f"{result.machine.get('processor', '?')}, torch {result.machine.get('torch', '?')}"


def _curves_apart(mine: Result, kept: Result) -> str:
    """Name the first rollout whose curves differ; nothing where none does. Curves that only one has are left out."""
    shared = [tag for tag in kept.curves if tag in mine.curves]
    lengths = {len(result.curves[tag]) for tag in shared for result in (mine, kept)}
    if len(lengths) > 1:
        return f"of different lengths, {_listed(lengths)} rollouts"
    firsts = {tag: _first_apart(mine.curves[tag], kept.curves[tag]) for tag in shared}
    apart = {tag: first for tag, first in firsts.items() if first is not None}
    if not apart:
        return ""
    tag = min(apart, key=lambda tag: apart[tag])
    ours, theirs = (result.curves[tag][apart[tag]] for result in (mine, kept))
    return f"apart from rollout {apart[tag] + 1} of {len(kept.curves[tag])} on: {tag} is {ours:g}, kept {theirs:g}"


def _first_apart(mine: Sequence[float], kept: Sequence[float]) -> int | None:
    places = np.flatnonzero(np.asarray(mine) != np.asarray(kept))
    return int(places[0]) if len(places) else None


def _rewards_apart(mine: Result, kept: Result) -> str:
    """Count the problems whose samples have other rewards; nothing where none has."""
    pairs = [(mine.rewards, kept.rewards)]
    pairs += [(mine.told[k].rewards, kept.told[k].rewards) for k in kept.told if k in mine.told]
    problems = kept.rewards.keys() | mine.rewards.keys()
    num_apart = sum(any(ours.get(problem) != theirs.get(problem) for ours, theirs in pairs) for problem in problems)
    return f"apart in {num_apart} of {len(problems)} problems" if num_apart else ""


def _listed(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))
