"""Choosing among candidates whose scores are given: order, ties, and the expected reward of the chosen one."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxk_lightning.selection import Candidate, Observation, Then, choose, observe_all, realised_at_k
from maxk_lightning.selection.agreement import Behaviours
from maxk_lightning.selection.scorers import Numbers
from maxk_lightning.selection.selector import Seen
from maxk_lightning.types import Problem, TestCase

PROBLEM = Problem(
    id="p",
    prompt="",
    tests=(TestCase(input="1", output="2", is_public=True), TestCase(input="3", output="4")),
    answer="7",
    columns={"solution": "x"},
    metadata={"solution": "x"},
)


def _seen(*observations: Observation, logprobs: Sequence[float | None] | None = None) -> Seen:
    num_candidates = len(logprobs) if logprobs else len(observations[0].values)  # type: ignore[attr-defined]
    candidates = [
        Candidate(text=str(i), mean_logprob=(logprobs or [None] * num_candidates)[i]) for i in range(num_candidates)
    ]
    names = [f"s{place}" for place in range(len(observations))]
    return Seen(names=names, observations=observations, candidates=candidates)


@pytest.mark.parametrize(
    ("seen", "index", "how"),
    [
        (_seen(Numbers([1.0, 3.0, 2.0])), 1, "s0"),
        (_seen(Numbers([3.0, 3.0, 2.0]), Numbers([0.0, 1.0, 9.0])), 1, "s1"),
        (_seen(Numbers([1.0, 1.0]), logprobs=[-2.0, -1.0]), 1, "mean_logprob"),
        (_seen(Numbers([1.0, 1.0])), 0, "first sampled"),
        (_seen(Numbers([math.nan, -5.0])), 1, "s0"),
        (_seen(Numbers([math.nan, math.nan])), 0, "first sampled"),
        (_seen(Numbers([0.0]), logprobs=[math.nan]), 0, "only"),
    ],
)
def test_ties_are_broken_in_a_stated_order(seen: Seen, index: int, how: str) -> None:
    choice = choose(seen)
    assert (choice.index, choice.how, choice.confidence) == (index, how, None)


def test_copies_are_no_rivals() -> None:
    """What set the answer apart is told, though it was sampled twice."""
    candidates = [Candidate(text="a"), Candidate(text="b"), Candidate(text="a")]
    seen = Seen(names=["s0"], observations=[Numbers([2.0, 1.0, 2.0])], candidates=candidates)
    assert (choose(seen).index, choose(seen).how) == (0, "s0")
    assert choose(seen, [0, 2]).how == "only"


def test_no_candidate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no candidate to choose from"):
        choose(_seen(Numbers([1.0])), [])


@dataclass(frozen=True)
class Spy:
    """Keeps what it is shown."""

    shown: list[Problem]
    name: str = "spy"

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Numbers]:
        """Remember."""
        self.shown.extend(problems)
        return [Numbers([0.0] * len(group)) for group in groups]


def test_no_selector_sees_hidden_tests_answers_or_columns() -> None:
    spy = Spy([])
    Then([spy]).observe([PROBLEM], [[Candidate(text="")]])
    (problem,) = spy.shown
    assert [test.input for test in problem.tests] == ["1"]
    assert (problem.answer, problem.columns, problem.metadata) == (None, {}, {})


def test_a_selector_of_several_orders_looks_once() -> None:
    """Running programs is what costs; orders that share a selector share what it saw."""
    first, second = Spy([], name="first"), Spy([], name="second")
    orders = [Then([first]), Then([first, second]), Then([second, first])]
    seen = observe_all(orders, [PROBLEM], [[Candidate(text="a"), Candidate(text="b")]])
    assert (len(first.shown), len(second.shown)) == (1, 1)
    assert [[each.names for each in of_order] for of_order in seen] == [
        [["first"]],
        [["first", "second"]],
        [["second", "first"]],
    ]


numbers = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=7
)


@given(numbers, st.integers(1, 7))
def test_realised_at_k_is_the_mean_over_all_subsets(rows: list[tuple[int, int, float]], k: int) -> None:
    first, second, rewards = (list(map(float, column)) for column in zip(*rows, strict=True))
    seen = _seen(Numbers(first), Numbers(second))
    (value,) = realised_at_k(seen, rewards, [k])
    if k > len(rows):
        assert math.isnan(value)
        return
    subsets = list(itertools.combinations(range(len(rows)), k))
    expected = sum(rewards[choose(seen, subset).index] for subset in subsets) / len(subsets)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_realised_at_k_of_what_depends_on_others_is_the_mean_over_all_subsets() -> None:
    """Agreement: six candidates, three behaviours."""
    behaviours = Behaviours([(b"a",), (b"a",), (b"b",), (b"b",), (b"b",), (None,)])
    rewards = [1.0, 1.0, 0.0, 0.0, 0.0, 0.5]
    seen = _seen(behaviours, logprobs=[-1.0, -2.0, -1.5, -3.0, -2.5, -0.5])
    for k, value in zip(range(1, 7), realised_at_k(seen, rewards, list(range(1, 7)), seed=3), strict=True):
        subsets = list(itertools.combinations(range(6), k))
        expected = sum(rewards[choose(seen, subset).index] for subset in subsets) / len(subsets)
        assert value == pytest.approx(expected)  # all of them: there are at most 20
    assert realised_at_k(seen, rewards, [3], seed=3) == realised_at_k(seen, rewards, [3], seed=3)


def test_subsets_are_drawn_where_there_are_many() -> None:
    behaviours = Behaviours([(b"a",)] * 6 + [(b"b",)] * 5 + [(None,)] * 3)
    rewards = [1.0] * 6 + [0.0] * 5 + [0.5] * 3
    seen = _seen(behaviours, logprobs=[-float(index) for index in range(14)])
    subsets = list(itertools.combinations(range(14), 4))
    expected = sum(rewards[choose(seen, subset).index] for subset in subsets) / len(subsets)
    (value,) = realised_at_k(seen, rewards, [4], seed=3)
    assert value == pytest.approx(expected, abs=4 * 0.5 / 16)  # four standard errors
    assert [value] == realised_at_k(seen, rewards, [4], seed=3) != realised_at_k(seen, rewards, [4], seed=4)


def test_agreement_scores_and_confidence() -> None:
    behaviours = Behaviours([(b"a", b"x"), (b"a", b"y"), (b"a", None), (None, None)])
    assert behaviours.scores(range(4)) == [(3 + 1) / 8, (3 + 1) / 8, 3 / 8, 0.0]
    assert behaviours.scores([1, 3]) == [(1 + 1) / 4, 0.0]
    assert [behaviours.confidence(index) for index in range(4)] == [0.25, 0.25, 0.25, None]
    assert Behaviours([(), ()]).scores([0, 1]) == [0.0, 0.0]
    assert Behaviours([(), ()]).confidence(0) is None
