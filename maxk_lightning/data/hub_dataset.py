"""Any set of questions: of the hub, in a directory, or in one file; its columns are given by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from maxk_lightning.data.files import FileRows, read_once
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import ROW, Address, Row, load_problems, load_rows, scan
from maxk_lightning.data.selection import first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import answer_of, prompt_of
from maxk_lightning.types import Problem

NUM_SHOWN = 20
"Columns named in a refusal."


class HubDataset:
    """Problems whose prompt, and answer where there is one, stand in columns of any names.

    All columns reach rewards by name; the answer also as `answer`. A prompt is a text or a list of messages with `role`
    and `content`. Ids are the numbers of rows, from 0, unless a column holds them.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        prompt: str = "prompt",
        answer: str | None = None,
        *,
        config: str | None = None,
        id: str | None = None,
        streaming: bool = False,
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose rows.

        Args:
            path: Hub name, a local directory with the same files, or one file (.json, .jsonl, .parquet, .csv, .tsv).
            split: Split of the data set; a file is read whole.
            prompt: Column of the prompt.
            answer: Column of the right answer; None: `answer`, where there is such a column.
            config: Configuration of the data set.
            id: Column of ids, all different; None: row numbers.
            streaming: Read the first `limit` rows from the hub, instead of downloading the whole set.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.

        Raises:
            ValueError: `streaming` without `limit`, or a limit below 1.
        """
        if streaming and limit is None:
            raise ValueError("streaming: true needs a `limit`: training counts its problems before it begins")
        self.path = path
        self.split = split
        self.config = config
        self.streaming = streaming
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.reader = _Reader(prompt, answer, id)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the rows.

        Raises:
            ValueError: the rows cannot be had, a column is missing, or a row is malformed (with its number).
        """
        address = Address(self.path, self.config, self.split)
        if self.streaming:
            problems, report = read_once((address, self.reader, self.skip_invalid, self.limit), self._read_stream)
            self.report = report.copy()
            return list(problems)
        problems, self.report = load_problems(
            address,
            self.reader,
            skip_invalid=self.skip_invalid,
            complete=lambda rows: self.reader.checked(rows, address.name),
        )
        return first(problems, self.report, self.limit)

    def _read_stream(self) -> tuple[list[Problem], LoadReport]:
        name = Address(self.path, self.config, self.split).name
        rows = list(islice(load_rows(self.path, self.config, split=self.split, streaming=True), self.limit))
        return scan(rows, self.reader.checked(rows, name), name, skip_invalid=self.skip_invalid)


@dataclass(frozen=True)
class _Reader:
    prompt: str
    answer: str | None
    id: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.id or self.prompt,)

    def checked(self, rows: Any, where: str) -> "_Reader":
        """This reader; ValueError when a column that the user named is missing."""
        names = list(rows[0]) if isinstance(rows, FileRows | list) and len(rows) else getattr(rows, "column_names", [])
        for key in ("prompt", "answer", "id"):
            column = getattr(self, key)
            if column is not None and names and column not in names:
                shown = ", ".join(names[:NUM_SHOWN])
                raise ValueError(f"`{key}` is {column!r}, but {where} has no such column; it has {shown}")
        return self

    def facts(self, row: Row) -> Facts:
        return Facts(id=str(row[ROW] if self.id is None else row.get(self.id)))

    def why_left_out(self, row: Row) -> str | None:
        return None

    def parse(self, row: Row) -> Problem:
        prompt, messages = prompt_of(row, self.prompt)
        return Problem(
            id=self.facts(row).id,
            prompt=prompt,
            messages=messages,
            answer=answer_of(row.get(self.answer or "answer")),
            columns={name: value for name, value in row.items() if name != ROW},
        )
