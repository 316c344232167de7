r"""GSM8K (Cobbe et al. 2021) and MATH (Hendrycks et al. 2021): questions with published solutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import ROW, Address, LeftOutError, Row, load_problems
from maxk_lightning.data.selection import first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import answer_of, take
from maxk_lightning.types import Problem

MARK = "####"
"GSM8K puts it in front of the answer."
BOX = "\\boxed"


class GSM8K:
    """`openai/gsm8k`: school mathematics in words. The answer is the number behind `####`, without its commas.

    Rewards see the columns `question`, `answer` (the number) and `solution` (the published text).
    """

    def __init__(
        self,
        path: str = "openai/gsm8k",
        config: Literal["main", "socratic"] = "main",
        hub_split: Literal["train", "test"] = "train",
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file of rows.
            config: `main`, or `socratic`, whose solutions ask sub-questions; of no account for a file.
            hub_split: Split of the data set; a file is read whole.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.address = Address(path, config, hub_split)
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the rows."""
        problems, self.report = load_problems(self.address, _GSM8KReader(), skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


class MATH:
    r"""MATH and sets of its form (`problem`, `solution`): the answer is what the solution's last `\boxed{}` holds.

    Where rows have an `answer` of their own, as those of MATH-500, it is that. Rewards see all columns. A solution
    without a box leaves its problem out.
    """

    def __init__(
        self,
        path: str = "DigitalLearningGmbH/MATH-lighteval",
        config: str | None = None,
        hub_split: str = "train",
        levels: Sequence[str] | None = None,
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file of rows.
            config: Configuration of the data set; of no account for a file.
            hub_split: Split of the data set; a file is read whole.
            levels: Keep these, such as `["4", "5"]`; None: all.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.address = Address(path, config, hub_split)
        self.reader = _MATHReader(None if levels is None else tuple(map(str, levels)))
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the rows."""
        problems, self.report = load_problems(self.address, self.reader, skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _GSM8KReader:
    columns = ("question",)

    def facts(self, row: Row) -> Facts:
        return Facts(id=f"gsm8k/{row[ROW]}")

    def why_left_out(self, row: Row) -> str | None:
        return None

    def parse(self, row: Row) -> Problem:
        question, solution = take(dict(row), "question", str), take(dict(row), "answer", str)
        _, mark, answer = solution.rpartition(MARK)
        answer = answer.strip().replace(",", "")
        if not mark or not answer:
            raise ValueError(f"`answer` holds no {MARK} with a number behind it")
        columns = {"question": question, "answer": answer, "solution": solution}
        return Problem(id=self.facts(row).id, prompt=question, answer=answer, columns=columns)


@dataclass(frozen=True)
class _MATHReader:
    levels: tuple[str, ...] | None
    columns = ("level", "type", "subject", "unique_id")

    def facts(self, row: Row) -> Facts:
        source = row.get("type") or row.get("subject") or "-"
        return Facts(id=str(row.get("unique_id") or f"math/{row[ROW]}"), source=source, difficulty=_level(row) or "-")

    def why_left_out(self, row: Row) -> str | None:
        if self.levels is None or _level(row) in self.levels:
            return None
        return f"level {_level(row)} was not asked for"

    def parse(self, row: Row) -> Problem:
        record: dict[str, Any] = {key: value for key, value in row.items() if key != ROW}
        problem, solution = take(record, "problem", str), take(record, "solution", str)
        answer = answer_of(record.get("answer")) or answer_of(last_boxed(solution))
        if answer is None:
            raise LeftOutError(f"no {BOX} in the solution")
        return Problem(id=self.facts(row).id, prompt=problem, answer=answer, columns={**record, "answer": answer})


def _level(row: Row) -> str:
    return str(row.get("level") or "").removeprefix("Level ")


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}`, or `\boxed x`, of a text holds; None: there is none, or its brace never closes.

    >>> last_boxed(r"So $a = \boxed{2}$ and $b = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    start = max(text.rfind(f"{name}{opening}") for name in (BOX, "\\fbox") for opening in "{ ")
    if start < 0:
        return None
    rest = text[start:].partition("boxed" if text.startswith(BOX, start) else "fbox")[2]
    if rest.startswith(" "):
        return rest.strip().partition("$")[0].strip() or None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    return None
