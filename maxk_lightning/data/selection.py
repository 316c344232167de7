"""Which tests of a problem are used, and which problems are held out. Everything is a function of names and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from maxk_lightning.data.report import LoadReport
from maxk_lightning.data.rows import LeftOutError
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, TestCase

Part = Literal["train", "test", "all"]


@dataclass(frozen=True, kw_only=True)
class TestSelection:
    """Which tests judge a problem: always the same ones, so that all samples of a group are compared alike."""

    __test__ = False  # not a pytest class

    max_tests: int | None = None
    "At most so many (CURE: 8); None: all."
    seed: int | None = None
    "None: the first ones in the order public, private, generated; a number: drawn, the same draw for a problem always."
    min_distinct_outputs: int = 1
    "Leave out problems whose selected tests expect fewer different outputs: a constant would solve them."
    num_public: int | None = None
    """So many of them, the first, are public: an answer may be chosen by them (`--select`, `best`). None: those that
    are so in the source."""

    def __post_init__(self) -> None:
        if self.max_tests is not None and self.max_tests < 1:
            raise ValueError(f"tests.max_tests is {self.max_tests}, must be at least 1 (or null)")
        if self.min_distinct_outputs < 1:
            raise ValueError(f"tests.min_distinct_outputs is {self.min_distinct_outputs}, must be at least 1")
        if self.num_public is not None and self.num_public < 0:
            raise ValueError(f"tests.num_public is {self.num_public}, must not be negative (or null)")

    def select(self, problem_id: str, tests: Sequence[TestCase]) -> tuple[TestCase, ...]:
        """Choose among a problem's tests, given in the order public, private, generated.

        Raises:
            LeftOutError: no test, or too few different outputs.
        """
        if not tests:
            raise LeftOutError("no tests")
        chosen = list(tests)
        if self.max_tests is not None and self.seed is not None and self.max_tests < len(tests):
            drawn = Random(derive_seed(self.seed, "tests", problem_id)).sample(range(len(tests)), self.max_tests)
            chosen = [tests[index] for index in sorted(drawn)]
        selected = tuple(chosen[: self.max_tests])
        if len({test.output for test in selected}) < self.min_distinct_outputs:
            raise LeftOutError(f"fewer than {self.min_distinct_outputs} different expected outputs")
        return selected if self.num_public is None else with_public(selected, self.num_public)


def with_public(tests: Sequence[TestCase], count: int) -> tuple[TestCase, ...]:
    """Make the first tests public, and the others hidden."""
    return tuple(replace(test, is_public=place < count) for place, test in enumerate(tests))


def pair_tests(inputs: object, outputs: object, field: str, *, is_public: bool = False) -> list[TestCase]:
    """Join parallel lists; ValueError when they are not lists of strings of one length."""
    for key, values in (("input", inputs), ("output", outputs)):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"`{field}`: {key}s must be a list of strings")
    assert isinstance(inputs, list)
    assert isinstance(outputs, list)
    if len(inputs) != len(outputs):
        raise ValueError(f"`{field}` has {len(inputs)} inputs and {len(outputs)} outputs")
    pairs = zip(inputs, outputs, strict=True)
    return [TestCase(input=given, output=expected, is_public=is_public) for given, expected in pairs]


def hold_out(problems: list[Problem], report: LoadReport, part: Part, share: float, seed: int) -> list[Problem]:
    """One side of a seeded split; problems keep their order.

    Every problem gets a random rank from (seed, id) alone and the share with the smallest ranks is held out. So the
    size is exact, and leaving out some problems moves none of the others across, except at the border.
    """
    if part == "all":
        return problems
    ranked = sorted(problems, key=lambda problem: derive_seed(seed, "hold out", problem.id))
    held_out = {problem.id for problem in ranked[: round(share * len(problems))]}
    kept = [problem for problem in problems if (problem.id in held_out) == (part == "test")]
    others = {problem.id for problem in problems} - {problem.id for problem in kept}
    report.drop(others, f"on the other side of the split (asked for: {part})")
    return kept


def check_share(share: float, key: str) -> float:
    """ValueError unless the number lies strictly between 0 and 1."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"{key} is {share}, must be between 0 and 1")
    return share


def first(problems: list[Problem], report: LoadReport, limit: int | None) -> list[Problem]:
    """The first `limit` problems; the rest is counted."""
    report.drop({problem.id for problem in problems[limit:]} if limit is not None else (), f"beyond limit ({limit})")
    return problems[:limit]
