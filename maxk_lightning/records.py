"""Read our JSON Lines formats; a malformed record is refused with file, line and reason. Standard library only."""

import difflib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from maxk_lightning.types import Compare, Header, Problem, TestCase, ValueFormat

T = TypeVar("T")
PROBLEM_KEYS = tuple(f.name for f in fields(Problem))


def read_problems(path: Path) -> list[Problem]:
    """Read a problem file.

    Raises:
        ValueError: naming file, line and reason: no such file, an empty one, a malformed record, a repeated id.
    """
    problems: list[Problem] = []
    first_line_of: dict[str, int] = {}
    for line_number, problem in read_records(path, problem_from_record):
        if problem.id in first_line_of:
            raise ValueError(f"{path}:{line_number}: id {problem.id!r} was used on line {first_line_of[problem.id]}")
        first_line_of[problem.id] = line_number
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path}: no problem in this file")
    return problems


def read_records(path: Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[tuple[int, T]]:
    """Yield (line number, parsed record) for every line of a JSON Lines file; blank lines are skipped.

    Raises:
        ValueError: naming file, line and reason.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open(encoding="utf-8") as file:
        try:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    yield line_number, _parse_line(line, f"{path}:{line_number}", parse)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)") from error


def _parse_line(line: str, where: str, parse: Callable[[dict[str, Any]], T]) -> T:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a record must be a JSON object, not {type(record).__name__}")
    try:
        return parse(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def problem_from_record(record: dict[str, Any]) -> Problem:
    """Turn one JSON object into a `Problem`; ValueError says which field is wrong and why."""
    check_keys(record, required=("id", "prompt", "tests"), allowed=PROBLEM_KEYS)
    tests = take(record, "tests", list)
    if not tests:
        raise ValueError("`tests` is empty: a problem needs at least one test")
    memory_limit_mb = _positive(record, "memory_limit_mb")
    values = _choice(record, "values", get_args(ValueFormat), "json")
    if record.get("atol") is not None and values != "python":
        raise ValueError("`atol` has no effect unless `values` is 'python'")
    if record.get("header") is not None and values == "python":
        raise ValueError("`header` has no effect where `values` is 'python'")
    return Problem(
        id=_non_empty(record, "id"),
        prompt=_non_empty(record, "prompt"),
        tests=tuple(_test_from_record(test, index) for index, test in enumerate(tests)),
        time_limit_s=_positive(record, "time_limit_s"),
        memory_limit_mb=None if memory_limit_mb is None else math.ceil(memory_limit_mb),
        compare=cast(Compare, _choice(record, "compare", get_args(Compare), "tokens")),
        checker=_optional_text(record, "checker"),
        function=_optional_text(record, "function"),
        values=cast(ValueFormat, values),
        atol=_at_least_0(record, "atol"),
        header=cast(Header | None, _choice(record, "header", (None, *get_args(Header)), None)),
        prefix=_optional_text(record, "prefix"),
        metadata=take(record, "metadata", dict) if record.get("metadata") is not None else {},
    )


def problem_to_record(problem: Problem) -> dict[str, Any]:
    """The JSON object of a problem; fields at their default are left out."""
    record: dict[str, Any] = {
        "id": problem.id,
        "prompt": problem.prompt,
        "tests": [_test_to_record(test) for test in problem.tests],
    }
    for key in ("time_limit_s", "memory_limit_mb", "checker", "function", "atol", "header", "prefix"):
        if getattr(problem, key) is not None:
            record[key] = getattr(problem, key)
    if problem.compare != "tokens":
        record["compare"] = problem.compare
    if problem.values != "json":
        record["values"] = problem.values
    if problem.metadata:
        record["metadata"] = problem.metadata
    return record


def check_keys(record: dict[str, Any], *, required: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Refuse missing and unknown keys; an unknown one close to a known one gets a suggestion."""
    for key in required:
        if key not in record:
            raise ValueError(f"`{key}` is missing")
    for key in record:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else f"; known keys: {', '.join(allowed)}"
            raise ValueError(f"unknown key `{key}`{hint}")


def take(record: dict[str, Any], key: str, kind: type[T]) -> T:
    """The value of a key, or ValueError when it is missing or of another JSON type."""
    if key not in record:
        raise ValueError(f"`{key}` is missing")
    value = record[key]
    if not isinstance(value, kind):
        raise ValueError(f"`{key}` must be {kind.__name__}, not {type(value).__name__}")
    return value


def _test_from_record(test: Any, index: int) -> TestCase:
    if not isinstance(test, dict):
        raise ValueError(f"`tests[{index}]` must be an object with `input` and `output`")
    try:
        check_keys(test, required=("input", "output"), allowed=("input", "output", "public"))
        is_public = take({"public": False} | test, "public", bool)
        return TestCase(input=take(test, "input", str), output=take(test, "output", str), is_public=is_public)
    except ValueError as error:
        raise ValueError(f"`tests[{index}]`: {error}") from error


def _test_to_record(test: TestCase) -> dict[str, Any]:
    shown = {"public": True} if test.is_public else {}
    return {"input": test.input, "output": test.output, **shown}


def _choice(record: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    value = record.get(key, default)
    if value not in allowed:
        raise ValueError(f"`{key}` is {value!r}, must be one of {', '.join(map(str, allowed))}")
    return value


def _at_least_0(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"`{key}` must be a number of at least 0, not {value!r}")
    return float(value)


def _non_empty(record: dict[str, Any], key: str) -> str:
    text = take(record, key, str)
    if not text.strip():
        raise ValueError(f"`{key}` is empty")
    return text


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _non_empty(record, key)


def _positive(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"`{key}` must be a positive number, not {value!r}")
    return float(value)
