"""Rows of a published data set, read by the `datasets` library, and problems whose tests stay in its arrow files."""

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, overload

from maxk_lightning.data.csv_types import typed
from maxk_lightning.data.files import SEPARATORS, FileRows, is_data_file, read_once, state_of
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.records import check_regular_file, take
from maxk_lightning.types import Problem, TestCase

Row = Mapping[str, Any]
ROW = "row"
"Key under which every row holds its number, from 0."
SHORTENED = "shortened"
"Key of a problem's metadata: the reasons why it lacks some of its tests."
ADVICE = (
    "Without a network give `path` a local copy of the repository's files, or fill the cache beforehand (HF_HOME) and "
    "set HF_HUB_OFFLINE=1"
)
LOCAL_ADVICE = (
    "A directory must hold the repository's files as the hub lays them out, with the README.md that names its "
    "configurations; `path` may also name one .json, .jsonl(.gz), .parquet, .csv or .tsv file"
)


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
        return self.reader.parse(_numbered(self.rows, self.row_index)).tests


@dataclass(frozen=True, slots=True)
class Address:
    """Where rows lie: a hub repository, its local copy, or one file."""

    path: str
    "Hub name, directory, or file (`.json`, `.jsonl`, also with `.gz`, `.parquet`, `.csv`, `.tsv`)."
    config: str | None = None
    "Configuration of the data set; of no account for a file."
    split: str | None = None
    "Its split; of no account for a file, which is taken whole."
    columns: tuple[str, ...] | None = None
    "Read only these of parquet files, so that unwanted large ones are never decoded."
    file: str | None = None
    "The one file of the repository that is read, where it is not read whole."

    @property
    def name(self) -> str:
        """For messages."""
        if is_data_file(self.path):
            return self.path
        if self.file is not None:
            return file_of(self.path, self.file)
        return f"{self.path} ({', '.join(filter(None, (self.config, self.split)))})"

    def rows(self) -> Any:
        """A `datasets.Dataset` or `FileRows`; ValueError when they cannot be had."""
        if is_data_file(self.path) or self.file is not None:
            return rows_of_file(self.name, self.columns)
        return load_rows(self.path, self.config, split=self.split, columns=self.columns)


def rows_of_file(file: str, columns: Sequence[str] | None = None) -> Any:
    """Rows of one file, local or `hf://`."""
    if file.endswith((".parquet", *SEPARATORS)):
        if not file.startswith("hf://"):
            check_regular_file(Path(file).expanduser())
        if file.endswith(".parquet"):
            return load_rows("parquet", split="train", data_files={"train": [file]}, columns=columns)
        return _csv_rows(file)
    if file.startswith("hf://"):
        return load_rows("json", split="train", data_files={"train": [file]})
    _check_local(file)
    return FileRows(file)


def _csv_rows(file: str) -> Any:
    """Rows of a csv file; `datasets` would read integers as floats where a cell is empty, and `None` as if it were."""
    import pandas as pd  # that and `datasets` take seconds
    from datasets import Dataset

    try:
        # pandas only warns where rows are longer than the header
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            texts = pd.read_csv(file, sep=SEPARATORS[file[-4:]], dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        advice = ADVICE if file.startswith("hf://") else LOCAL_ADVICE
        raise ValueError(f"{file}: cannot be read: {_cause(error)}. {advice}") from error
    return Dataset.from_dict({str(name): typed(texts[name].fillna("").tolist()) for name in texts.columns})


def load_rows(
    builder: str,
    config: str | None = None,
    *,
    split: str | None,
    data_files: Mapping[str, Sequence[str]] | None = None,
    columns: Sequence[str] | None = None,
    streaming: bool = False,
) -> Any:
    """Call `datasets.load_dataset`; what goes wrong becomes advice.

    Args:
        builder: Hub name or a local directory of the same layout; `json` or `parquet` with `data_files`.
        config: Configuration of the data set.
        split: Its split; None: all, as a mapping.
        data_files: Split -> files.
        columns: Read only these (parquet), so that unwanted large ones are never decoded.
        streaming: Give rows one after the other as they come from the hub, and download nothing else.

    Raises:
        ValueError: the data cannot be had; says what to do.
    """
    from datasets import config as config_of_datasets
    from datasets import load_dataset  # seconds: only a command that loads data waits for it
    from datasets.exceptions import DatasetsError

    files = [builder] if data_files is None else [name for names in data_files.values() for name in names]
    where = ", ".join(files)
    is_local = all(Path(name).expanduser().exists() for name in files)
    for name in files:
        _check_local(name)
    options: dict[str, Any] = {} if columns is None else {"columns": list(columns)}
    options |= {"streaming": True} if streaming else {}
    if is_local:
        state = hashlib.blake2b("".join(map(state_of, files)).encode(), digest_size=8).hexdigest()
        # `datasets` distinguishes two directories of one name by neither path nor content, and would serve the first.
        options["cache_dir"] = str(Path(config_of_datasets.HF_DATASETS_CACHE) / f"local-{state}")
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
        raise ValueError(f"{where}: cannot be read: {_cause(error)}. {LOCAL_ADVICE if is_local else ADVICE}") from error


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


def load_problems(
    address: Address,
    reader: RowReader,
    *,
    skip_invalid: bool,
    complete: Callable[[Any], RowReader] | None = None,
) -> tuple[list[Problem], LoadReport]:
    """Problems of an address with their tests left on disk, and the report; from memory where they were read before.

    Args:
        address: Where the rows lie.
        reader: Hashable: it is part of what is remembered.
        skip_invalid: As `scan` says.
        complete: Makes the reader that is used from the rows; what it adds must follow from `reader`.
    """

    def read() -> tuple[list[Problem], LoadReport]:
        rows = address.rows()
        return scan(rows, complete(rows) if complete else reader, address.name, skip_invalid=skip_invalid)

    problems, report = read_once((address, state_of(address.path), reader, skip_invalid), read)
    return list(problems), report.copy()


def scan(rows: Any, reader: RowReader, where: str, *, skip_invalid: bool) -> tuple[list[Problem], LoadReport]:
    """Read every row once: problems with their tests left on disk, and the report.

    Raises:
        ValueError: a malformed row, by data set, row (from 0), field and reason; with `skip_invalid` it is left out.
    """
    report = LoadReport(name=where)
    problems: list[Problem] = []
    seen: set[str] = set()
    small = small_columns(rows, reader)
    for index in range(len(rows)):
        facts = Facts(id=f"row {index}")
        try:
            row = _numbered(small, index)
            facts = reader.facts(row)
            problem, reasons = _read_problem(rows, index, row, reader)
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
            report.keep(facts, reasons)
            problems.append(problem)
    return problems, report


def _numbered(rows: Any, index: int) -> Row:
    return {**rows[index], ROW: index}


def small_columns(rows: Any, reader: RowReader) -> Any:
    """The rows with the reader's small columns alone, where that spares reading the others."""
    if isinstance(rows, FileRows | list):
        return rows
    return rows.select_columns([column for column in reader.columns if column in rows.column_names])


def _read_problem(rows: Any, index: int, small_row: Row, reader: RowReader) -> tuple[Problem, Collection[str]]:
    """The problem of a row, and why some of its tests are missing."""
    reason = reader.why_left_out(small_row)
    if reason is not None:
        raise LeftOutError(reason)
    problem = reader.parse(_numbered(rows, index))
    facts = reader.facts(small_row)
    strata = {"source": facts.source, "difficulty": facts.difficulty}
    tests = DiskTests(rows, index, reader, len(problem.tests)) if problem.tests else ()
    problem = replace(problem, tests=tests, metadata={**strata, **problem.metadata})
    return problem, problem.metadata.get(SHORTENED, ())


def texts(record: Row, key: str) -> list[str]:
    """A list of texts; ValueError naming the field when it is something else."""
    values = take(dict(record), key, list)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"`{key}[{index}]` must be a text, not {type(value).__name__}")
    return values
