"""The sets that CURE (Wang et al. 2025) published: stdin/stdout problems in one JSON array per repository."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import ROW, Address, Row, load_problems
from maxk_lightning.data.selection import TestSelection, first, pair_tests
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Compare, Problem


class Cure:
    """`Gen-Verse/*`: processed CodeContests, Codeforces, LiveBench, LiveCodeBench and MBPP.

    Some of the repositories were taken over by another project, which stores function tests under the same names; such
    rows are left out, and counted. CURE's own versions are now called `Gen-Verse/...-ReasonFlux`.
    """

    def __init__(
        self,
        path: str = "Gen-Verse/CodeContests_train",
        file: str = "train/CodeContests_train.json",
        tests: TestSelection = TestSelection(max_tests=8),  # noqa: B008  (immutable)
        use_limits: bool = True,
        compare: Compare = "tokens",
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or the JSON file itself.
            file: The JSON file inside it.
            tests: Which tests judge a problem (CURE: the first 8).
            use_limits: Take the time limit from the data (CURE's own training runs used 1 s whatever it says).
            compare: `tokens` is CURE's rule.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.path = path
        self.file = file
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.reader = _Reader(tests, use_limits, compare, instruction)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the file; ids are row numbers, because the published ones differ by file."""
        address = Address(self.path, file=self.file)
        problems, self.report = load_problems(address, self.reader, skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _Reader:
    tests: TestSelection
    use_limits: bool
    compare: Compare
    instruction: Instruction
    columns = ("dataset", "difficulty", "test_method")

    def facts(self, row: Row) -> Facts:
        difficulty = row.get("difficulty")
        source = str(row.get("dataset") or "-")
        return Facts(
            id=f"{source}/{row[ROW]}", source=source, difficulty="-" if difficulty is None else str(difficulty)
        )

    def why_left_out(self, row: Row) -> str | None:
        if row.get("test_method") == "function":
            return "function tests of the project that took this repository over"
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        facts = self.facts(row)
        shown = (record.get("example_input") or [], record.get("example_output") or [])
        examples = pair_tests(*shown, "example", is_public=True)
        tests = pair_tests(take(record, "test_input", list), take(record, "test_output", list), "test")
        time_limit = record.get("test_time_limit")
        return Problem(
            id=facts.id,
            prompt=self.instruction.for_stdin(take(record, "question", str)),
            tests=self.tests.select(facts.id, tests or examples),
            time_limit_s=float(time_limit) if time_limit and self.use_limits else None,
            compare=self.compare,
        )
