"""LiveCodeBench (Jain et al. 2024), code generation, read from its JSON lines files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from maxk_lightning.data.files import is_data_file
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.packed_tests import COMPARE, function_name, read_tests
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import Address, Row, load_problems
from maxk_lightning.data.selection import TestSelection, first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Compare, Problem

NUM_FILES = 6
ERRATA = frozenset(
    {
        "abc311_c",
        "abc326_d",
        "abc327_b",
        "abc333_e",
        "abc343_a",
        "abc343_e",
        "abc362_c",
        "arc185_c",
        "find-words-containing-character",
        "find-the-peaks",
        "generate-binary-strings-without-adjacent-zeros",
        "abc337_e",
        "abc355_e",
        "abc350_c",
        "apply-operations-to-make-string-empty",
        "most-frequent-ids",
        "arc189_a",
    }
)
"Several accepted outputs, interactive, or wrong tests, as LiveCodeBench's ERRATA.md lists them."


class LiveCodeBench:
    """`livecodebench/code_generation_lite`: programs on standard input, and LeetCode methods that are called.

    Programs find the names of LiveCodeBench's own header imported, and its recursion limit.

    The hub repository holds a loading script, which `datasets` no longer runs, so the files are read directly. The
    paper's "v6" is `release_v6`: files 1 to 6, 1055 problems.
    """

    def __init__(
        self,
        path: str = "livecodebench/code_generation_lite",
        version: str = "release_v6",
        start_date: str | None = None,
        end_date: str | None = None,
        exclude_errata: bool = False,
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        compare: Compare = COMPARE,
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files (test.jsonl, test2.jsonl, ...), or one such file.
            version: `release_v1` to `release_v6` (all files up to that one), `release_latest`, `v2` (one file) or
                `v2_v4` (files 2 to 4); of no account where `path` is a file.
            start_date: Keep contests from this day on (YYYY-MM-DD).
            end_date: Keep contests up to this day.
            exclude_errata: Leave out what LiveCodeBench lists as broken; published numbers include it.
            tests: Which tests judge a problem.
            compare: For programs on standard input; `lines_decimal` is LiveCodeBench's rule.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.path = path
        files = files_of(version)
        self.files = [Path(path).name] if is_data_file(path) else files
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        window = (_day(start_date, "start_date"), _day(end_date, "end_date"))
        self.reader = _Reader(window, exclude_errata, tests, compare, instruction)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the files; tests stay on disk."""
        problems: dict[str, Problem] = {}
        report = LoadReport(name=f"{self.path} ({', '.join(self.files)})")
        for name in self.files:
            found, part = load_problems(Address(self.path, file=name), self.reader, skip_invalid=self.skip_invalid)
            part.drop(problems.keys(), "id was used in an earlier file")
            problems |= {problem.id: problem for problem in found if problem.id not in problems}
            report.extend(part)
        self.report = report
        return first(list(problems.values()), report, self.limit)


def files_of(version: str) -> list[str]:
    """File names of a version.

    >>> files_of("release_v2"), files_of("v3"), len(files_of("release_latest")), files_of("v2_v3")
    (['test.jsonl', 'test2.jsonl'], ['test3.jsonl'], 6, ['test2.jsonl', 'test3.jsonl'])
    """
    latest = version.replace("release_latest", f"release_v{NUM_FILES}")
    match = re.fullmatch(r"release_v([1-6])|v([1-6])(?:_v([1-6]))?", latest)
    if match is None:
        raise ValueError(f"version is {version!r}, must be release_v1 ... release_v6, release_latest, v1 or v1_v3")
    start = 1 if match[1] else int(match[2])
    end = int(match[1] or match[3] or match[2])
    if end < start:
        raise ValueError(f"version is {version!r}, which ends before it begins")
    return ["test.jsonl" if number == 1 else f"test{number}.jsonl" for number in range(start, end + 1)]


@dataclass(frozen=True)
class _Reader:
    window: tuple[str | None, str | None]
    exclude_errata: bool
    tests: TestSelection
    compare: Compare
    instruction: Instruction
    columns = ("question_id", "question_title", "platform", "difficulty", "contest_date")

    def facts(self, row: Row) -> Facts:
        record = dict(row)
        return Facts(
            id=take(record, "question_id", str),
            source=take(record, "platform", str),
            difficulty=take(record, "difficulty", str),
        )

    def why_left_out(self, row: Row) -> str | None:
        start, end = self.window
        day = day_of(row.get("contest_date"), "contest_date")
        if (start and day < start) or (end and day > end):
            return f"contest date outside {start or '...'} to {end or '...'}"
        slug = str(row.get("question_title")).strip().lower().replace(" ", "-")
        if self.exclude_errata and not ERRATA.isdisjoint((row["question_id"], slug)):
            return "listed in LiveCodeBench's errata"
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        facts = self.facts(row)
        function = function_name(record.get("metadata"), "metadata")
        statement = take(record, "question_content", str)
        starter = record.get("starter_code") or ""
        if function is None:
            prompt = self.instruction.for_stdin(statement)
        else:
            prompt = self.instruction.for_function(statement, function, starter)
        return Problem(
            id=facts.id,
            prompt=prompt,
            tests=self.tests.select(facts.id, read_tests(record, function)),
            compare=self.compare,
            function=function,
            header="livecodebench",
            metadata={"date": day_of(record.get("contest_date"), "contest_date")},
        )


def day_of(value: object, field: str) -> str:
    """A date as YYYY-MM-DD; `datasets` turns such columns into datetimes, or into texts with a blank for the T.

    >>> day_of("2025-03-01T00:00:00", "d") == day_of("2025-03-01 00:00:00", "d") == day_of(datetime(2025, 3, 1), "d")
    True
    """
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise ValueError(f"`{field}` is {value!r}, not a date") from error
    return moment.date().isoformat()


def _day(text: str | None, key: str) -> str | None:
    return None if text is None else day_of(text, key)
