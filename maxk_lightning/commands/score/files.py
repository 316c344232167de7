"""Files of the `score` command: reading problems and completions as streams, and going on after a stop."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from maxk_lightning.records import check_keys, problem_from_record, take
from maxk_lightning.types import Problem

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One record of the completions file."""

    id: str
    "Of its problem."
    completions: tuple[str, ...]
    "In order."


class RecordReader:
    """Reads JSON Lines; refuses malformed records with file, line and reason, or skips and lists them."""

    def __init__(self, *, skip_invalid: bool) -> None:
        self.skipped: list[str] = []
        self._skip_invalid = skip_invalid

    def read(self, path: Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[tuple[int, T]]:
        """Yield (line number, parsed record); blank lines are skipped."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    parsed = _parse(line, parse) if line.strip() else None
                except ValueError as error:
                    self.refuse(path, number, str(error))
                else:
                    if parsed is not None:
                        yield number, parsed

    def refuse(self, path: Path, number: int, reason: str) -> None:
        """Raise ValueError, or note the record as skipped."""
        message = f"{path}:{number}: {reason}"
        if not self._skip_invalid:
            raise ValueError(message)
        self.skipped.append(message)


def _parse(line: bytes, parse: Callable[[dict[str, Any]], T]) -> T:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, not {type(record).__name__}")
    return parse(record)


def read_problems(reader: RecordReader, path: Path) -> dict[str, Problem]:
    """Problems by id; ValueError when there is none."""
    known: dict[str, Problem] = {}
    for number, problem in reader.read(path, problem_from_record):
        if problem.id in known:
            reader.refuse(path, number, f"id {problem.id!r} was used on an earlier line")
        else:
            known[problem.id] = problem
    if not known:
        raise ValueError(f"{path}: no problem in this file")
    return known


def read_groups(reader: RecordReader, path: Path, known: dict[str, Problem]) -> Iterator[Group]:
    """Stream the completions file; an id must belong to a problem and stand on one line only."""
    first_line_of: dict[str, int] = {}
    for number, group in reader.read(path, group_from_record):
        if group.id not in known:
            reader.refuse(path, number, f"id {group.id!r} is not among the problems")
        elif group.id in first_line_of:
            reader.refuse(path, number, f"id {group.id!r} was used on line {first_line_of[group.id]}")
        else:
            first_line_of[group.id] = number
            yield group


def group_from_record(record: dict[str, Any]) -> Group:
    """Turn one JSON object into a `Group`; ValueError says which field is wrong and why."""
    check_keys(record, required=("id", "completions"), allowed=("id", "completions"))
    completions = take(record, "completions", list)
    for index, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise ValueError(f"`completions[{index}]` must be str, not {type(completion).__name__}")
    return Group(id=take(record, "id", str), completions=tuple(completions))


class Resumption:
    """What an earlier run left in the output file, and the settings it ran with."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self._out = out
        self._settings_path = out.with_name(out.name + ".settings.json")
        self._settings = settings

    def records_done(self) -> dict[str, int]:
        """Number of rewards by id; cuts off a last line that was not finished, and remembers the settings."""
        done = self._read() if self._out.is_file() else {}
        if done and self._settings_path.is_file():
            earlier = json.loads(self._settings_path.read_text(encoding="utf-8"))
            differing = [key for key, value in self._settings.items() if earlier.get(key) != value]
            if differing:
                raise ValueError(
                    f"{self._out} holds scores with other settings ({', '.join(differing)}); choose another --out"
                )
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._settings_path.write_text(json.dumps(self._settings) + "\n", encoding="utf-8")
        return done

    def _read(self) -> dict[str, int]:
        done: dict[str, int] = {}
        end = 0
        with self._out.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    done[record["id"]] = len(record["rewards"])
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{self._out}:{number}: not a record of scores; choose another --out") from error
                end += len(line)
        os.truncate(self._out, end)
        return done
