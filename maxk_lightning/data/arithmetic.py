"""Built-in questions with answers: small sums, which the built-in policy has never seen."""

from collections.abc import Sequence

from maxk_lightning.data.sources import check_limit
from maxk_lightning.types import Problem


class Arithmetic:
    """All sums of two numbers from 1 to `largest`, as questions: a first run of a reward that compares answers.

    The policy `builtin` knows programs only and learns these sums by heart, so training and validation ask the same
    questions: what it learns says that a set-up works, not that a policy can add.
    """

    def __init__(self, largest: int = 6, limit: int | None = None) -> None:
        """Choose the numbers; ValueError unless `largest` is from 1 to 9."""
        if not 1 <= largest <= 9:
            raise ValueError(f"largest is {largest}, must be from 1 to 9")
        self.largest = largest
        self.limit = check_limit(limit)

    def load(self) -> Sequence[Problem]:
        """The sums, ordered by their first number."""
        numbers = range(1, self.largest + 1)
        problems = [
            Problem(id=f"{a}+{b}", prompt=f"What is {a} + {b}?", answer=str(a + b), columns={"answer": a + b})
            for a in numbers
            for b in numbers
        ]
        return problems[: self.limit]
