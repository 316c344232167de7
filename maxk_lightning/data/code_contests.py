"""CodeContests (Li et al. 2022): the paper's training set and first test set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import Address, Row, load_problems
from maxk_lightning.data.selection import Part, TestSelection, check_share, first, hold_out, pair_tests
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Compare, Problem

SOURCES = ("UNKNOWN_SOURCE", "CODECHEF", "CODEFORCES", "HACKEREARTH", "CODEJAM", "ATCODER", "AIZU")
"Class labels of `source`; the protocol buffers of the original release number the last two differently."
DIFFICULTIES = (
    "UNKNOWN_DIFFICULTY",
    "EASY",
    "MEDIUM",
    "HARD",
    "HARDER",
    "HARDEST",
    "EXTERNAL",
    *"ABCDEFGHIJKLMNOPQRSTUV",
)
"Class labels of `difficulty`. Codeforces problems carry contest letters, from A = 7 on."
KINDS = ("public_tests", "private_tests", "generated_tests")
SMALL_COLUMNS = ("name", "source", "difficulty", "input_file", "output_file")
COLUMNS = (
    *SMALL_COLUMNS,
    "description",
    *KINDS,
    "time_limit",
    "memory_limit_bytes",
)
"All but the solutions, which are most of the data."


class CodeContests:
    """`deepmind/code_contests`, filtered as in the paper: difficulty <= 3.

    That filter keeps UNKNOWN, EASY, MEDIUM and HARD, and so very probably no Codeforces problem at all; the report
    shows it by source and difficulty. The paper's 2490 / 276 problems are a random split of what is left after its
    length filter; here the length filter (`data.max_prompt_tokens`) comes after the split.
    """

    def __init__(
        self,
        path: str = "deepmind/code_contests",
        split: Part = "train",
        hub_split: Literal["train", "valid", "test"] = "train",
        max_difficulty: int | None = 3,
        test_share: float = 0.1,
        split_seed: int = 0,
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        use_limits: bool = True,
        compare: Compare = "tokens",
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file of rows. Rows whose tests stand together
                in `tests`, as some copies have them, need no `source`.
            split: `train`, `test` (the held-out share) or `all` of the filtered problems.
            hub_split: The published split that is read; a file is read whole.
            max_difficulty: Largest class number of `difficulty` that is kept (the paper: 3); None: all.
            test_share: Share of problems held out as `test`.
            split_seed: Of the split.
            tests: Which tests judge a problem; the paper does not say, so all of them.
            use_limits: Take time and memory limits from the data where it has them; the official grader does not.
            compare: `tokens` as CURE, `tokens_float` as the official grader.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.path = path
        self.split = split
        self.hub_split = hub_split
        self.max_difficulty = max_difficulty
        self.test_share = check_share(test_share, "test_share")
        self.split_seed = split_seed
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.reader = _Reader(max_difficulty, tests, use_limits, compare, instruction)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the files; tests stay on disk."""
        address = Address(self.path, split=self.hub_split, columns=COLUMNS)
        problems, report = load_problems(address, self.reader, skip_invalid=self.skip_invalid)
        problems = hold_out(problems, report, self.split, self.test_share, self.split_seed)
        self.report = report
        return first(problems, report, self.limit)


@dataclass(frozen=True)
class _Reader:
    max_difficulty: int | None
    tests: TestSelection
    use_limits: bool
    compare: Compare
    instruction: Instruction
    columns = SMALL_COLUMNS

    def facts(self, row: Row) -> Facts:
        source = SOURCES[0] if "tests" in row and "source" not in row else _label(row, "source", SOURCES)
        difficulty = _label(row, "difficulty", DIFFICULTIES)
        return Facts(id=f"{source}/{take(dict(row), 'name', str)}", source=source, difficulty=difficulty)

    def why_left_out(self, row: Row) -> str | None:
        rank = DIFFICULTIES.index(_label(row, "difficulty", DIFFICULTIES))
        if self.max_difficulty is not None and rank > self.max_difficulty:
            return f"difficulty above {self.max_difficulty}"
        if row.get("input_file") or row.get("output_file"):
            return "reads or writes files instead of standard input and output"
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        facts = self.facts(row)
        tests = [
            test
            for kind in (("tests",) if "tests" in row else KINDS)
            for test in pair_tests(*_columns_of(record.get(kind), kind), kind, is_public=kind == "public_tests")
        ]
        statement = take(record, "description", str)
        if not statement.strip():
            raise ValueError("`description` is empty")
        return Problem(
            id=facts.id,
            prompt=self.instruction.for_stdin(statement),
            tests=self.tests.select(facts.id, tests),
            time_limit_s=_seconds(record.get("time_limit")) if self.use_limits else None,
            memory_limit_mb=_mebibytes(record.get("memory_limit_bytes")) if self.use_limits else None,
            compare=self.compare,
        )


def _label(row: Row, column: str, names: Sequence[str]) -> str:
    """Name of a class label, which rows hold as its number, or as the name where a copy lost the numbers."""
    value = row.get(column)
    if isinstance(value, str) and value in names:
        return value
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise ValueError(f"`{column}` is {value!r}, must be a class number below {len(names)} or its name")


def _columns_of(tests: Any, field: str) -> tuple[object, object]:
    """Inputs and outputs of a dict of lists (as published) or a list of dicts (as some copies have it)."""
    if isinstance(tests, dict):
        return tests.get("input"), tests.get("output")
    if isinstance(tests, list) and all(isinstance(test, dict) for test in tests):
        return [test.get("input") for test in tests], [test.get("output") for test in tests]
    raise ValueError(f"`{field}` must be lists `input` and `output`, not {type(tests).__name__}")


def _seconds(limit: Any) -> float | None:
    """Seconds of a duration; null and zero: unknown."""
    if limit is None:
        return None
    parts = [limit.get(key) or 0 for key in ("seconds", "nanos")] if isinstance(limit, dict) else [limit]
    if not all(isinstance(part, int | float) and part >= 0 for part in parts):
        raise ValueError(f"`time_limit` is {limit!r}, must be seconds and nanos")
    return float(parts[0] + (parts[1] / 1e9 if len(parts) > 1 else 0)) or None


def _mebibytes(limit: Any) -> int | None:
    if limit is not None and not (isinstance(limit, int | float) and limit >= 0):
        raise ValueError(f"`memory_limit_bytes` is {limit!r}, must be a number of bytes")
    return math.ceil(limit / (1 << 20)) if limit else None
