"""The interface: what a selector sees, what it returns, and how one candidate is chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from maxk_lightning.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the N answers of a problem."""

    text: str
    "Answer as a reward reads it."
    mean_logprob: float | None = None
    "Mean log-prob of its tokens under the tempered policy, in nats; None: not known."


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The candidate that was chosen."""

    index: int
    "Its index in the group."
    how: str
    """Selector that set it apart from all candidates of another text, else `mean_logprob` or `first sampled`; `only`
    where there is no other text."""
    confidence: float | None
    "Share of the group that agrees with it, in [0, 1]; None: no selector says."


class Observation(Protocol):
    """What a selector has seen of a group of N candidates."""

    def scores(self, indices: Sequence[int]) -> Sequence[float]:
        """Score the candidates of these indices, as if there were no others; larger is better."""
        ...

    def confidence(self, index: int) -> float | None:
        """Return the share of the group that agrees with a candidate; None: not known."""
        ...

    @property
    def depends_on_others(self) -> bool:
        """Whether the score of a candidate depends on which others there are."""
        ...


class Selector(Protocol):
    """Looks at groups of candidates. It is given no hidden test and no known answer; see `shown`."""

    @property
    def name(self) -> str:
        """What tables and `Choice.how` call it."""
        ...

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> Sequence[Observation]:
        """Look at all candidates of each problem, once."""
        ...


@dataclass(frozen=True, slots=True)
class Then:
    """Several selectors: each decides among the candidates that those before it hold equal."""

    selectors: Sequence[Selector]

    @property
    def name(self) -> str:
        """All names, joined by `+`."""
        return "+".join(selector.name for selector in self.selectors)

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list["Seen"]:
        """Let every selector look."""
        return observe_all([self], problems, groups)[0]


def observe_all(
    orders: Sequence[Then], problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]
) -> list[list["Seen"]]:
    """Let every selector of several orders look, once where it is in several; returns a list per order."""
    problems = [shown(problem) for problem in problems]
    selectors: list[Selector] = []
    for selector in (selector for order in orders for selector in order.selectors):
        if selector not in selectors:
            selectors.append(selector)
    observed = [selector.observe(problems, groups) for selector in selectors]
    seen = []
    for order in orders:
        names = [selector.name for selector in order.selectors]
        columns = zip(*(observed[selectors.index(selector)] for selector in order.selectors), strict=True)
        seen.append(
            [
                Seen(names=names, observations=observations, candidates=group)
                for observations, group in zip(columns, groups, strict=True)
            ]
        )
    return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What all selectors have seen of a group."""

    names: Sequence[str]
    "Names of the selectors."
    observations: Sequence[Observation]
    "What each has seen."
    candidates: Sequence[Candidate]
    "The group."

    @property
    def depends_on_others(self) -> bool:
        """Whether the order of two candidates depends on which others there are."""
        return any(observation.depends_on_others for observation in self.observations)

    def keys(self, indices: Sequence[int]) -> list[tuple[float, ...]]:
        """What candidates are ordered by, among these: scores, mean log-prob, and which was sampled first."""
        columns = [_checked(observation.scores(indices)) for observation in self.observations]
        logprobs = [self.candidates[index].mean_logprob for index in indices]
        likelihoods = [-math.inf if value is None or math.isnan(value) else value for value in logprobs]
        return list(zip(*columns, likelihoods, [-index for index in indices], strict=True))


def first_of(seen: Seen, indices: Sequence[int]) -> int:
    """Index of the candidate that is chosen among these, at least one."""
    return max(zip(seen.keys(indices), indices, strict=True))[1]


def choose(seen: Seen, indices: Sequence[int] | None = None) -> Choice:
    """Choose one of these candidates; None: of all.

    Raises:
        ValueError: there is none.
    """
    if indices is None:
        indices = range(len(seen.candidates))
    if not indices:
        raise ValueError("there is no candidate to choose from")
    keys = dict(zip(indices, seen.keys(indices), strict=True))
    best = max(keys, key=lambda index: keys[index])
    told = (observation.confidence(best) for observation in reversed(seen.observations))
    confidence = next((share for share in told if share is not None), None)
    text = seen.candidates[best].text
    rivals = [key for index, key in keys.items() if seen.candidates[index].text != text]
    return Choice(index=best, how=_how(seen.names, keys[best], rivals), confidence=confidence)


def shown(problem: Problem) -> Problem:
    """Return the problem as a selector sees it: with its public tests only, and without its answer."""
    tests = tuple(test for test in problem.tests if test.is_public)
    return replace(problem, tests=tests, answer=None, columns={}, metadata={})


def _how(names: Sequence[str], best: tuple[float, ...], rivals: Sequence[tuple[float, ...]]) -> str:
    if not rivals:
        return "only"
    for place, name in enumerate((*names, "mean_logprob")):
        rivals = [key for key in rivals if key[place] == best[place]]
        if not rivals:
            return name
    return "first sampled"


def _checked(scores: Sequence[float]) -> list[float]:
    """NaN is the lowest, so that no candidate gains by it."""
    return [-math.inf if math.isnan(score) else float(score) for score in scores]
