"""Files of the `score` command: completions as a stream, and going on after a stop."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maxk_lightning.commands.inputs import check_inputs, write_inputs
from maxk_lightning.commands.whole_file import write_whole
from maxk_lightning.records import Refuse, check_keys, check_regular_file, read_records, take
from maxk_lightning.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsRecord:
    """One record of the completions file."""

    id: str
    "Of its problem."
    completions: tuple[str, ...]
    "In order."


class Refusals:
    """Refuses malformed records with file, line and reason, or lists them as skipped."""

    def __init__(self, *, skip_invalid: bool) -> None:
        self.skipped: list[str] = []
        self._skip_invalid = skip_invalid

    def __call__(self, path: Path, line_number: int, reason: str) -> None:
        """Raise ValueError, or note the record as skipped."""
        message = f"{path}:{line_number}: {reason}"
        if not self._skip_invalid:
            raise ValueError(message)
        self.skipped.append(message)


def read_completions(path: Path, known: dict[str, Problem], refuse: Refuse) -> Iterator[CompletionsRecord]:
    """Stream the completions file; an id must belong to a problem and stand on one line only."""
    first_line_of: dict[str, int] = {}
    for line_number, record in read_records(path, completions_from_record, refuse):
        if record.id not in known:
            refuse(path, line_number, f"id {record.id!r} is not among the problems")
        elif record.id in first_line_of:
            refuse(path, line_number, f"id {record.id!r} was used on line {first_line_of[record.id]}")
        else:
            first_line_of[record.id] = line_number
            yield record


def completions_from_record(record: dict[str, Any]) -> CompletionsRecord:
    """Turn one JSON object into a `CompletionsRecord`; ValueError says which field is wrong and why."""
    check_keys(record, required=("id", "completions"), allowed=("id", "completions"))
    completions = take(record, "completions", list)
    for index, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise ValueError(f"`completions[{index}]` must be str, not {type(completion).__name__}")
    return CompletionsRecord(id=take(record, "id", str), completions=tuple(completions))


RECORD_START = b'{"id": '
"How every line of scores begins."


class ScoresFile:
    """The file that scores are appended to, with what an earlier run left in it and the settings it ran with."""

    def __init__(self, out: str, settings: dict[str, Any], *, inputs: tuple[str, str]) -> None:
        """Name the file.

        Raises:
            ValueError: it is one of the inputs, or no file.
        """
        self.path = Path(out)
        self._inputs_path = self.path.with_name(self.path.name + ".inputs.json")
        self._settings_path = self.path.with_name(self.path.name + ".settings.json")
        self._settings = settings
        for path in inputs:
            if os.path.realpath(path) == os.path.realpath(out) or _is_same_file(path, out):
                raise ValueError(f"--out is {out}, the file that is read: choose another one")
        if os.path.lexists(out):
            check_regular_file(self.path)
        above = next(path for path in self.path.absolute().parents if path.exists())
        if not above.is_dir():
            raise ValueError(f"--out is {out}, but {above} is no directory")

    def open(self, digests: dict[str, str]) -> IO[str]:
        """Open it for more records; makes its directory, and remembers the digests of their inputs."""
        try:
            write_whole(self._settings_path, json.dumps(self._settings) + "\n")
            write_inputs(self._inputs_path, digests)
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--out is {self.path}: {error.strerror}") from error

    def append(self, file: IO[str], record: dict[str, Any]) -> None:
        """Write one record, at once."""
        try:
            file.write(json.dumps(record) + "\n")
            file.flush()
        except OSError as error:
            raise ValueError(f"--out is {self.path}: {error.strerror}; run again to continue from here") from error

    def records_done(self, digests: dict[str, str]) -> dict[str, int]:
        """Number of rewards by id; cuts off a last line of scores that was not finished.

        Args:
            digests: Id -> digest of the completions and of what judges them.

        Raises:
            ValueError: it holds something else, or scores with other settings, completions or tests.
        """
        try:
            done, end, rest = self._read() if self.path.exists() else ({}, 0, b"")
            earlier = self._earlier_settings()
            if rest and earlier is None:
                raise ValueError(f"{self.path}: its last line has no end; choose another --out")
            differing = [key for key, value in self._settings.items() if earlier and earlier.get(key) != value]
            if differing and (done or rest):
                raise ValueError(
                    f"{self.path} holds scores with other settings ({', '.join(differing)}); choose another --out"
                )
            check_inputs(self._inputs_path, digests, done, "completions or tests")
            if rest:
                os.truncate(self.path, end)
        except OSError as error:
            raise ValueError(f"--out is {self.path}: {error.strerror}") from error
        return done

    def _read(self) -> tuple[dict[str, int], int, bytes]:
        """Number of rewards by id, the bytes of all finished lines, and what follows them."""
        done: dict[str, int] = {}
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n") and line.startswith(RECORD_START[: len(line)]):
                    return done, end, line
                try:
                    record = json.loads(line)
                    done[take(record, "id", str)] = len(take(record, "rewards", list))
                except (ValueError, TypeError, RecursionError) as error:
                    raise ValueError(f"{self.path}:{number}: not a record of scores; choose another --out") from error
                end += len(line)
        return done, end, b""

    def _earlier_settings(self) -> dict[str, Any] | None:
        if not os.path.lexists(self._settings_path):
            return None
        check_regular_file(self._settings_path)
        try:
            earlier = json.loads(self._settings_path.read_bytes())
        except (ValueError, RecursionError):
            earlier = None
        if not isinstance(earlier, dict) or not earlier.keys() & self._settings.keys():
            raise ValueError(f"{self._settings_path}: not the settings of an earlier run; choose another --out")
        return earlier


def _is_same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
