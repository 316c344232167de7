"""Codeforces problems with checkers (open-r1/codeforces)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maxk_lightning.data.files import is_data_file, read_once, state_of
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import Address, Row, file_of, load_problems, load_rows, rows_of_file, small_columns
from maxk_lightning.data.selection import TestSelection, first, pair_tests
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Compare, Problem, TestCase

PARTS = (("input_format", "Input"), ("output_format", "Output"))
"Columns of a statement and their headings."
OVERLAP_COLUMNS = ("name", "cf_contest_id", "cf_index")
_NAME = re.compile(r"(\d+)_([A-Z]\d*)\.")


class Codeforces:
    """`open-r1/codeforces`, without interactive problems, file I/O and what CodeContests holds too.

    Where a row has a checker it judges instead of the comparison. Without one, open-r1 compares blank-separated words,
    yes and no in either case; here `compare` says, by default `tokens`, which does not forgive case.
    """

    def __init__(
        self,
        path: str = "open-r1/codeforces",
        config: str = "verifiable",
        hub_split: str = "test",
        overlap: str | None = "deepmind/code_contests",
        use_generated_tests: bool = True,
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        compare: Compare = "tokens",
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file of rows (which has no generated tests).
            config: `verifiable` (tests are complete or were generated) or `default`.
            hub_split: `train` or `test`; a file is read whole.
            overlap: CodeContests, as hub name or local directory, whose problems are left out; None: keep them.
            use_generated_tests: Where the official tests are incomplete, read generated ones (a large file per
                contest); false: leave those problems out.
            tests: Which tests judge a problem.
            compare: For problems without a checker.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.path = path
        self.config = config
        self.hub_split = hub_split
        self.overlap = overlap
        self.use_generated_tests = use_generated_tests
        self.tests = tests
        self.compare: Compare = compare
        self.instruction = instruction
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the files; tests stay on disk."""
        address = Address(self.path, self.config, self.hub_split)
        known = frozenset() if self.overlap is None else code_contests_ids(self.overlap)
        has_generated = self.use_generated_tests and not is_data_file(self.path)
        reader = _Reader(known, has_generated, self.tests, self.compare, self.instruction)

        def complete(rows: Any) -> _Reader:
            return replace(reader, generated=_GeneratedTests.read(self.path, _contests_to_complete(rows, reader)))

        problems, self.report = load_problems(
            address, reader, skip_invalid=self.skip_invalid, complete=complete if has_generated else None
        )
        return first(problems, self.report, self.limit)


def code_contests_ids(path: str) -> frozenset[str]:
    """Ids (`contest/index`) of all Codeforces problems in CodeContests, by its own columns and by problem name."""
    return read_once(("overlap", state_of(path)), lambda: _read_ids(path))


def _read_ids(path: str) -> frozenset[str]:
    ids: set[str] = set()
    if is_data_file(path):
        splits = [rows_of_file(path, OVERLAP_COLUMNS)]
    else:
        splits = list(load_rows(path, split=None, columns=OVERLAP_COLUMNS).values())
    for split in splits:
        for row in split:
            if row.get("cf_contest_id") and row.get("cf_index"):
                ids.add(f"{row['cf_contest_id']}/{row['cf_index']}")
            match = _NAME.match(row.get("name") or "")
            if match:
                ids.add(f"{match[1]}/{match[2]}")
    return frozenset(ids)


def _contests_to_complete(rows: Any, reader: "_Reader") -> list[int]:
    """Contests with a wanted problem whose official tests are cut short."""
    contests = set()
    for row in small_columns(rows, reader):
        is_cut = row.get("generated_tests") and not row.get("official_tests_complete")
        if is_cut and reader.why_left_out(row) is None:
            contests.add(int(row["contest_id"]))
    return sorted(contests)


@dataclass(frozen=True)
class _GeneratedTests:
    """Generated tests of some contests; they stay on disk."""

    rows: Any = None
    "Columns problem_id, input, output."
    indices: Mapping[str, Sequence[int]] = field(default_factory=dict)
    "Problem -> rows."

    @classmethod
    def read(cls, path: str, contests: Sequence[int]) -> "_GeneratedTests":
        if not contests:
            return cls()
        files = [file_of(path, f"generated_tests/test_cases_{contest:04d}.parquet") for contest in contests]
        rows = load_rows("parquet", split="train", data_files={"train": files})
        indices: dict[str, list[int]] = {}
        for index, problem_id in enumerate(rows["problem_id"]):
            indices.setdefault(problem_id, []).append(index)
        return cls(rows, indices)

    def of(self, problem_id: str) -> list[TestCase]:
        """Tests of a problem."""
        chosen = self.indices.get(problem_id, ())
        return [TestCase(input=row["input"], output=row["output"]) for row in map(self._row, chosen)]

    def _row(self, index: int) -> Any:
        return self.rows[index]


@dataclass(frozen=True)
class _Reader:
    known_ids: frozenset[str]
    has_generated: bool
    tests: TestSelection
    compare: Compare
    instruction: Instruction
    generated: _GeneratedTests = field(default=_GeneratedTests(), compare=False)
    columns = (
        "id",
        "aliases",
        "contest_id",
        "rating",
        "interaction_format",
        "input_mode",
        "executable",
        "official_tests_complete",
        "generated_tests",
    )

    def facts(self, row: Row) -> Facts:
        rating = row.get("rating")
        difficulty = "unrated" if rating is None else f"{rating // 400 * 400:04d}-{rating // 400 * 400 + 399:04d}"
        return Facts(id=take(dict(row), "id", str), source="CODEFORCES", difficulty=difficulty)

    def why_left_out(self, row: Row) -> str | None:
        if (row.get("interaction_format") or "").strip():
            return "interactive"
        if row.get("input_mode") != "stdio":
            return f"input_mode is {row.get('input_mode')}"
        if row.get("executable") is False:
            return "marked as not executable"
        if not self.known_ids.isdisjoint((row["id"], *(row.get("aliases") or ()))):
            return "also in CodeContests"
        if not row.get("official_tests_complete") and not self.has_generated:
            return "official tests are incomplete"
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        problem_id = take(record, "id", str)
        shown = {_key(test) for test in _official(record.get("examples"), "examples")}
        tests = [
            replace(test, is_public=_key(test) in shown)
            for test in _official(record.get("official_tests"), "official_tests")
        ]
        if not record.get("official_tests_complete"):
            tests += self.generated.of(problem_id)
        memory_limit = record.get("memory_limit")
        return Problem(
            id=problem_id,
            prompt=self.instruction.for_stdin(_statement(record)),
            tests=self.tests.select(problem_id, tests),
            time_limit_s=record.get("time_limit") or None,
            memory_limit_mb=math.ceil(memory_limit) if memory_limit else None,
            compare=self.compare,
            checker=record.get("generated_checker") or None,
            metadata={"rating": record.get("rating")},
        )


def _key(test: TestCase) -> tuple[str, str]:
    """Examples differ from the tests they show in blanks at the end."""
    return " ".join(test.input.split()), " ".join(test.output.split())


def _official(items: Any, name: str) -> list[TestCase]:
    """Tests of a list of dicts (as published) or a dict of lists (as older copies come out), lines ending as here."""
    if isinstance(items, dict):
        tests = pair_tests(items.get("input"), items.get("output"), name)
    else:
        items = items or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"`{name}` must be a list of objects with `input` and `output`")
        tests = pair_tests([item.get("input") for item in items], [item.get("output") for item in items], name)
    return [TestCase(input=_unix(test.input), output=_unix(test.output)) for test in tests]


def _unix(text: str) -> str:
    """Some official tests hold carriage returns, which the site's own Windows machines never show a program."""
    return text.replace("\r\n", "\n")


def _statement(record: dict[str, Any]) -> str:
    """Title, description, formats, examples and note, as the site shows them."""
    parts = [f"# {take(record, 'title', str)}", take(record, "description", str)]
    parts += [f"## {heading}\n{record[column]}" for column, heading in PARTS if record.get(column)]
    examples = _official(record.get("examples"), "examples")
    if examples:
        shown = [f"Input\n```\n{test.input.strip()}\n```\nOutput\n```\n{test.output.strip()}\n```" for test in examples]
        parts.append("\n".join(["## Examples", *shown]))
    if record.get("note"):
        parts.append(f"## Note\n{record['note']}")
    return "\n\n".join(parts)
