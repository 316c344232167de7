"""LiveBench (White et al. 2024), coding: generation and completion of programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maxk_lightning.data.livecodebench import day_of
from maxk_lightning.data.packed_tests import COMPARE, function_name, read_tests
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import Address, Row, load_problems
from maxk_lightning.data.selection import TestSelection, first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Compare, Problem

TASKS = ("LCB_generation", "coding_completion")


class LiveBench:
    """`livebench/coding`. `turns[0]` is the whole user message, so no instruction is added.

    A completion task shows the beginning of a program; an answer that does not repeat it gets it put in front, as
    LiveBench's grader does; programs find the names of LiveCodeBench's header imported. The reward is ours, the
    fraction of tests, where LiveBench asks for all of them.
    """

    def __init__(
        self,
        path: str = "livebench/coding",
        hub_split: str = "test",
        tasks: Sequence[str] = TASKS,
        release: str | None = None,
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        compare: Compare = COMPARE,
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file of rows.
            hub_split: Split of the data set; a file is read whole.
            tasks: `LCB_generation`, `coding_completion` or both.
            release: Keep what was part of LiveBench on this day (YYYY-MM-DD; its README names 2024-11-25); None: all.
            tests: Which tests judge a problem.
            compare: For programs on standard input; `lines_decimal` is LiveBench's rule.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise ValueError(f"tasks is {list(tasks)}, must be some of {', '.join(TASKS)}")
        self.path = path
        self.hub_split = hub_split
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.reader = _Reader(tuple(tasks), None if release is None else day_of(release, "release"), tests, compare)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the file; tests stay on disk."""
        address = Address(self.path, split=self.hub_split)
        problems, self.report = load_problems(address, self.reader, skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _Reader:
    tasks: tuple[str, ...]
    release: str | None
    tests: TestSelection
    compare: Compare
    columns = ("question_id", "task", "original_json", "livebench_release_date", "livebench_removal_date")

    def facts(self, row: Row) -> Facts:
        record = dict(row)
        difficulty = _original(record).get("difficulty")
        return Facts(
            id=take(record, "question_id", str), source=take(record, "task", str), difficulty=str(difficulty or "-")
        )

    def why_left_out(self, row: Row) -> str | None:
        if row["task"] not in self.tasks:
            return f"task {row['task']} was not asked for"
        if self.release is not None:
            if day_of(row.get("livebench_release_date"), "livebench_release_date") > self.release:
                return f"released after {self.release}"
            removed = row.get("livebench_removal_date")
            if removed and day_of(removed, "livebench_removal_date") <= self.release:
                return f"removed by {self.release}"
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        facts = self.facts(row)
        function = function_name(_original(record).get("metadata"), "original_json.metadata")
        turns = take(record, "turns", list)
        if not turns or not isinstance(turns[0], str) or not turns[0].strip():
            raise ValueError("`turns[0]` must be the user message")
        return Problem(
            id=facts.id,
            prompt=turns[0],
            tests=self.tests.select(facts.id, read_tests(record, function)),
            compare=self.compare,
            function=function,
            header="livecodebench",
            prefix=record.get("partial_solution") or None,
        )


def _original(record: dict[str, Any]) -> dict[str, Any]:
    return take(record, "original_json", dict)
