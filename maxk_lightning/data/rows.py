"""Rows of a published data set, read by the `datasets` library, and problems whose tests stay in its arrow files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, overload

from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.types import Problem, TestCase

Row = Mapping[str, Any]


class LeftOutError(Exception):
    """A sound row that is not wanted; the message is the reason that the report counts it under."""


class RowReader(Protocol):
    """What a source knows about its rows. Malformed ones raise ValueError naming the field and the reason."""

    @property
    def columns(self) -> Sequence[str]:
        """All that `facts` and `why_left_out` look at: small columns, so that unwanted rows cost nothing."""
        ...

    def facts(self, row: Row) -> Facts:
        """Id and strata of a row, from `columns`."""
        ...

    def why_left_out(self, row: Row) -> str | None:
        """A reason to leave a row out that shows in `columns`, or None."""
        ...

    def parse(self, row: Row) -> Problem:
        """The problem of a whole row; `LeftOutError` when the row is sound but of no use."""
        ...


@dataclass(frozen=True, slots=True)
class DiskTests(Sequence[TestCase]):
    """Tests that are decoded from their row whenever they are looked at, and never kept.

    The tests of some problems are tens of MB. All ranks of a machine share the pages of one arrow file.
    """

    rows: Any
    "`datasets.Dataset`."
    row_index: int
    "Row."
    reader: RowReader
    "Decodes the row."
    num_tests: int
    "As counted when the row was first read."

    def __len__(self) -> int:
        return self.num_tests

    def __iter__(self) -> Iterator[TestCase]:
        return iter(self._read())

    @overload
    def __getitem__(self, index: int) -> TestCase: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TestCase]: ...
    def __getitem__(self, index: int | slice) -> TestCase | Sequence[TestCase]:
        return self._read()[index]

    def _read(self) -> Sequence[TestCase]:
        return self.reader.parse(self.rows[self.row_index]).tests


def load_rows(
    builder: str,
    config: str | None = None,
    *,
    split: str | None,
    data_files: Mapping[str, Sequence[str]] | None = None,
    columns: Sequence[str] | None = None,
) -> Any:
    """Call `datasets.load_dataset`; what goes wrong becomes advice.

    Args:
        builder: Hub name or a local directory of the same layout; `json` or `parquet` with `data_files`.
        config: Configuration of the data set.
        split: Its split; None: all, as a mapping.
        data_files: Split -> files.
        columns: Read only these (parquet), so that unwanted large ones are never decoded.

    Raises:
        ValueError: the data cannot be had; says what to do.
    """
    from datasets import config as config_of_datasets
    from datasets import load_dataset  # seconds: only a command that loads data waits for it
    from datasets.exceptions import DatasetsError

    where = builder if data_files is None else ", ".join(name for names in data_files.values() for name in names)
    if data_files is None:
        _check_local(builder)
    options: dict[str, Any] = {} if columns is None else {"columns": list(columns)}
    if Path(builder).expanduser().is_dir():
        options["cache_dir"] = str(Path(config_of_datasets.HF_DATASETS_CACHE) / f"local-{_state_of(builder)}")
    try:
        return load_dataset(builder, config, split=split, data_files=data_files, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{where}: holds a loading script ({error}), which `datasets` no longer runs, whatever options are given. "
            "Remove the script from a local copy, or read the data files themselves (a source such as "
            "maxk_lightning.data.LiveCodeBench does), or point `path` to a copy in parquet or JSON lines"
        ) from error
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"{where}: cannot be read: {_cause(error)}. Without a network give `path` a local copy of the repository's "
            "files, or fill the cache beforehand (HF_HOME) and set HF_HUB_OFFLINE=1"
        ) from error


def _state_of(directory: str) -> str:
    """Identifies a directory and the files in it.

    `datasets` itself tells two directories with equal last names and configurations apart by neither path nor content,
    and would serve the rows of the one that was read first.
    """
    root = Path(directory).expanduser().resolve()
    files = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*"))
    return hashlib.blake2b(repr((str(root), files)).encode(), digest_size=8).hexdigest()


def file_of(path: str, name: str) -> str:
    """The address of a file of a hub repository or of its local copy."""
    _check_local(path)
    return str(Path(path).expanduser() / name) if Path(path).expanduser().exists() else f"hf://datasets/{path}/{name}"


def _check_local(path: str) -> None:
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().exists():
        raise ValueError(f"{path}: no such file or directory")


def _cause(error: BaseException) -> str:
    """First line of the error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def scan(rows: Any, reader: RowReader, where: str, *, skip_invalid: bool) -> tuple[list[Problem], LoadReport]:
    """Read every row once: problems with their tests left on disk, and the report.

    Raises:
        ValueError: a malformed row, by data set, row (from 0), field and reason; with `skip_invalid` it is left out.
    """
    report = LoadReport(name=where)
    problems: list[Problem] = []
    seen: set[str] = set()
    small = rows.select_columns([column for column in reader.columns if column in rows.column_names])
    for index, row in enumerate(small):
        facts = Facts(id=f"row {index}")
        try:
            facts = reader.facts(row)
            problem = _read_problem(rows, index, row, reader)
            if facts.id in seen:
                raise LeftOutError("id was used before")
        except LeftOutError as reason:
            report.leave_out(facts, str(reason))
        except ValueError as error:
            if not skip_invalid:
                raise ValueError(f"{where}: row {index}: {error}") from error
            report.leave_out(facts, f"malformed: {error}")
        else:
            seen.add(facts.id)
            report.kept.append(facts)
            problems.append(problem)
    return problems, report


def _read_problem(rows: Any, index: int, small_row: Row, reader: RowReader) -> Problem:
    reason = reader.why_left_out(small_row)
    if reason is not None:
        raise LeftOutError(reason)
    problem = reader.parse(rows[index])
    facts = reader.facts(small_row)
    strata = {"source": facts.source, "difficulty": facts.difficulty}
    tests = DiskTests(rows, index, reader, len(problem.tests))
    return replace(problem, tests=tests, metadata={**strata, **problem.metadata})
