r"""Majority of answers: `0.5` and `\frac12` are one, whatever stands around them."""

from collections.abc import Iterator

import pytest

from maxk_lightning.rewards import MathReward
from maxk_lightning.selection import Candidate, Majority, Then, choose
from maxk_lightning.types import Problem

PROBLEM = Problem(id="half", prompt="What is 1/2 + 0?", answer="7")


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    pytest.importorskip("math_verify")
    with MathReward() as reward:
        yield reward


@pytest.mark.parametrize(
    ("texts", "index", "confidence"),
    [
        (["It is 2.", r"So \boxed{\frac12}.", "The answer is 0.5", r"I get $\frac{2}{4}$."], 1, 0.75),
        (["no idea", "none", "The answer is 4"], 2, 1 / 3),
        (["no idea", "none"], 0, None),
        (["It is 7.", "It is 3.", "It is 3."], 1, 2 / 3),  # the known answer is not looked at
        ([r"\boxed{" + "(" * 3000, r"\boxed{x^{x^{x^{9^{9^{9^9}}}}}}", "It is 5."], 1, 1 / 3),  # two different ones
    ],
)
def test_most_answers_win(reward: MathReward, texts: list[str], index: int, confidence: float | None) -> None:
    (seen,) = Then([Majority(reward)]).observe([PROBLEM], [[Candidate(text=text) for text in texts]])
    choice = choose(seen)
    assert choice.index == index
    assert choice.confidence == (None if confidence is None else pytest.approx(confidence))
