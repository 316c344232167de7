"""Where problems come from. A source is chosen in YAML by class path; users add their own class."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from maxk_lightning.data.files import read_once, state_of
from maxk_lightning.data.pipelines import VARIANTS
from maxk_lightning.data.selection import with_public
from maxk_lightning.records import read_problems
from maxk_lightning.types import Compare, Problem

# A user's class needs no annotations: jsonargparse wants those of an implementation to be identical to the Protocol's.
if TYPE_CHECKING:
    Problems = Sequence[Problem]
else:
    Problems = Any


class ProblemSource(Protocol):
    """A data set of problems. One that sets `self.report` (a `LoadReport`) in `load` has it shown; it need not."""

    def load(self) -> Problems:
        """All problems, in a fixed order. Raises ValueError naming file, line and reason for malformed input."""
        ...


class Builtin:
    """The built-in benchmarks: pipelines of list operations described in words (`maxk_lightning.data.pipelines`)."""

    def __init__(
        self,
        split: Literal["train", "validation", "test"] = "train",
        limit: int | None = None,
        *,
        variant: Literal["standard", "vague"] = "standard",
        num_public: int = 0,
    ) -> None:
        """Choose a split of a variant; `limit` keeps its first problems.

        The policy `builtin` was pre-trained for the variant `standard`, `builtin-vague` for `vague`.

        Args:
            split: Which problems.
            limit: How many; None: all.
            variant: How their statements are worded.
            num_public: So many of the 8 tests, the first, are public: an answer may be chosen by them (`--select`,
                `best`). Statements and rewards stay what they are.
        """
        if num_public < 0:
            raise ValueError(f"num_public is {num_public}, must not be negative")
        self.num_public = num_public
        self.variant = variant
        self.split = split
        self.limit = check_limit(limit)

    def load(self) -> Sequence[Problem]:
        """All problems of the split."""
        directory = Path(__file__).parent / VARIANTS[self.variant].directory
        problems = read_problems(directory / f"{self.split}.jsonl")[: self.limit]
        return [replace(problem, tests=with_public(problem.tests, self.num_public)) for problem in problems]


class JsonLines:
    """The user's own problems, one JSON object per line: a `prompt` and what its reward needs.

    Without an `id` a problem is called by the number of its line; keys that mean nothing here are columns for rewards.
    """

    def __init__(self, path: str, limit: int | None = None, compare: Compare | None = None) -> None:
        """Choose a file.

        Args:
            path: The file.
            limit: Keep the first problems only.
            compare: For all problems on standard input, whatever their records say; None: as they say.
        """
        self.path = path
        self.limit = check_limit(limit)
        self.compare = compare

    def load(self) -> Sequence[Problem]:
        """All problems of the file."""
        problems = read_once(("JsonLines", state_of(self.path)), lambda: read_problems(Path(self.path)))[: self.limit]
        if self.compare is None:
            return problems
        return [replace(problem, compare=self.compare) for problem in problems]


def check_limit(limit: int | None) -> int | None:
    """ValueError unless `limit` is None or at least 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, must be at least 1")
    return limit
