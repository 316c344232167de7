"""Read our JSON Lines formats; a malformed record is refused with file, line and reason. Standard library only."""

import difflib
import functools
import json
import keyword
import math
import reprlib
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args

from maxk_lightning.types import Compare, Header, Problem, TestCase, ValueFormat

T = TypeVar("T")
Refuse = Callable[[Path, int, str], None]
"Receives a malformed record: file, line, reason. Raises, or takes note so that reading continues without it."
PROBLEM_KEYS = tuple(f.name for f in fields(Problem) if f.name not in ("messages", "columns"))
"Keys of a record that mean something here; all others are columns."
OWN_KEYS = tuple(key for key in PROBLEM_KEYS if key != "answer")
CLOSE_KEY = 0.8
"How like a known key an unknown one beside `tests` must be (`difflib`'s ratio) to be taken for a slip."
BOM = b"\xef\xbb\xbf"
"Some editors put this mark before UTF-8 text."
MAX_FUNCTION_LENGTH = 1 << 14
"Characters; longer names do not go to the sandbox."


def refuse_record(path: Path, line_number: int, reason: str) -> NoReturn:
    """Raise ValueError naming file, line and reason."""
    raise ValueError(f"{path}:{line_number}: {reason}")


def read_problems(
    path: Path, refuse: Refuse = refuse_record, parse: Callable[[dict[str, Any]], Problem] | None = None
) -> list[Problem]:
    """Read a problem file; a record without an id gets the number of its line.

    Args:
        path: The file.
        refuse: Told of malformed records.
        parse: Turns a record into a problem; None: `problem_from_record`.

    Raises:
        ValueError: naming file, line and reason: no such file, an empty one, a malformed record, a repeated id.
    """
    problems: list[Problem] = []
    first_line_of: dict[str, int] = {}
    for line_number, read in read_records(path, parse or problem_from_record, refuse):
        problem = read if read.id else replace(read, id=str(line_number))
        if problem.id in first_line_of:
            refuse(path, line_number, f"id {problem.id!r} was used on line {first_line_of[problem.id]}")
            continue
        first_line_of[problem.id] = line_number
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path}: no problem in this file")
    return problems


def read_records(
    path: Path, parse: Callable[[dict[str, Any]], T], refuse: Refuse = refuse_record
) -> Iterator[tuple[int, T]]:
    """Yield (line number, parsed record) for every line of a JSON Lines file; blank lines are skipped.

    Raises:
        ValueError: naming file, line and reason.
    """
    check_regular_file(path)
    try:
        with path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        record = parse(object_of(line.removeprefix(BOM) if line_number == 1 else line))
                    except ValueError as error:
                        refuse(path, line_number, str(error))
                    else:
                        yield line_number, record
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def check_regular_file(path: Path) -> None:
    """ValueError that says what a path is, unless it is a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path}: {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def object_of(line: bytes) -> dict[str, Any]:
    """The JSON object that these bytes are; ValueError says why they are none."""
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_whole_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, not {type(record).__name__}")
    return record


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; of two values under one key, JSON's usual reader would silently drop the first."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key `{next(key for key in keys if keys.count(key) > 1)}` appears twice in one object")
    return record


def _whole_number(digits: str) -> int:
    """As `int`, whose refusal of endless numbers gives an advice that would help nobody here."""
    limit = sys.get_int_max_str_digits()
    if limit and len(digits) > limit:
        raise ValueError(f"not JSON that can be read: an integer of {len(digits)} digits")
    return int(digits)


def problem_from_record(record: dict[str, Any]) -> Problem:
    """Turn one JSON object into a `Problem`; ValueError says which field is wrong and why.

    Keys that mean nothing here become columns. An `answer` may be a text or a number; anything else is a column only.
    A record without an `id` gives a problem with an empty one.
    """
    _check_slips(record)
    prompt, messages = prompt_of(record, "prompt")
    tests = take({"tests": [], **record}, "tests", list)
    if "tests" in record and not tests:
        raise ValueError("`tests` is empty: leave it out, or give at least one")
    memory_limit_mb = _positive(record, "memory_limit_mb")
    function, checker = _optional_text(record, "function"), _optional_text(record, "checker")
    values = _choice(record, "values", get_args(ValueFormat), "json")
    if record.get("atol") is not None and values != "python":
        raise ValueError("`atol` has no effect unless `values` is 'python'")
    if record.get("header") is not None and values == "python":
        raise ValueError("`header` has no effect where `values` is 'python'")
    check_function(function, checker if values == "json" else None)
    if checker is not None:
        _check_compiles(checker)
    has_json_arguments = function is not None and values == "json"
    return Problem(
        id=_non_empty(record, "id") if "id" in record else "",
        prompt=prompt,
        messages=messages,
        tests=tuple(_test_from_record(test, index, has_json_arguments) for index, test in enumerate(tests)),
        time_limit_s=_positive(record, "time_limit_s"),
        memory_limit_mb=None if memory_limit_mb is None else math.ceil(memory_limit_mb),
        compare=cast(Compare, _choice(record, "compare", get_args(Compare), "tokens")),
        checker=checker,
        function=function,
        values=cast(ValueFormat, values),
        atol=_at_least_0(record, "atol"),
        header=cast(Header | None, _choice(record, "header", (None, *get_args(Header)), None)),
        prefix=_optional_text(record, "prefix"),
        answer=answer_of(record.get("answer")),
        columns={key: value for key, value in record.items() if key not in OWN_KEYS},
        metadata=take(record, "metadata", dict) if record.get("metadata") is not None else {},
    )


def problem_to_record(problem: Problem) -> dict[str, Any]:
    """The JSON object of a problem; fields at their default are left out."""
    record: dict[str, Any] = {"id": problem.id, "prompt": list(problem.messages) or problem.prompt}
    if problem.tests:
        record["tests"] = [_test_to_record(test) for test in problem.tests]
    if problem.answer is not None:
        record["answer"] = problem.answer
    record |= problem.columns
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


def prompt_of(record: Mapping[str, Any], key: str) -> tuple[str, tuple[dict[str, Any], ...]]:
    """The text of a prompt, and its messages where it is a chat.

    Raises:
        ValueError: neither a text nor a list of messages, or the last message would not be answered.
    """
    value = record.get(key)
    if not isinstance(value, list):
        return unicode_text(_non_empty(dict(record), key), key), ()
    if not value:
        raise ValueError(f"`{key}` is empty")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"`{key}[{index}]` must be a message with `role` and `content`")
    last = value[-1]
    if last["role"] not in ("user", "tool"):
        raise ValueError(
            f"`{key}` ends with a message of role {last['role']!r}, must end with one of the user; what begins the "
            "answer goes into data.template.prefill"
        )
    where = f"{key}[{len(value) - 1}]"
    content = take(last, "content", str)
    if not content.strip():
        raise ValueError(f"`{where}` is empty")
    return unicode_text(content, where), tuple(value)


def answer_of(value: Any) -> str | None:
    """An answer as a text: texts as they are, finite numbers without an exponent, else None.

    >>> answer_of(72), answer_of(" 7/2"), answer_of(1e-05), answer_of(float("nan")), answer_of([1, 2])
    ('72', ' 7/2', '0.00001', None, None)
    """
    if isinstance(value, str):
        return value if value.strip() else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return format(Decimal(repr(value)), "f") if is_number and math.isfinite(value) else None


def _check_slips(record: dict[str, Any]) -> None:
    """Refuse a key beside `tests` that looks like a known one misspelt: as a column it would do nothing."""
    for key in record if "tests" in record else ():
        close = difflib.get_close_matches(key, OWN_KEYS, n=1, cutoff=CLOSE_KEY)
        if key not in PROBLEM_KEYS and close:
            raise ValueError(f"unknown key `{key}`; did you mean `{close[0]}`?")


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


def check_function(function: str | None, checker: str | None) -> None:
    """ValueError unless the name of a function can be called, and there is no checker beside it."""
    if function is None:
        return
    if not function.isidentifier():
        raise ValueError(f"`function` is {reprlib.repr(function)}, not a Python name")
    if keyword.iskeyword(function):
        raise ValueError(f"`function` is {function!r}, a keyword of Python")
    if len(function) > MAX_FUNCTION_LENGTH:
        raise ValueError(f"`function` is a name of {len(function)} characters, may have {MAX_FUNCTION_LENGTH}")
    if checker is not None:
        raise ValueError("`function` and `checker` exclude each other: a checker reads what a program prints")


@functools.lru_cache(maxsize=1024)
def _check_compiles(checker: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the checker's style
            compile(checker, "checker", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ValueError(f"`checker` does not compile ({error.msg} on its line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`checker` does not compile ({str(error) or 'nested too deep'})") from error


def _test_from_record(test: Any, index: int, has_json_arguments: bool) -> TestCase:
    if not isinstance(test, dict):
        raise ValueError(f"`tests[{index}]` must be an object with `input` and `output`")
    try:
        check_keys(test, required=("input", "output"), allowed=("input", "output", "public"))
        if has_json_arguments:
            _check_arguments(take(test, "input", str))
            _check_result(take(test, "output", str))
        is_public = take({"public": False} | test, "public", bool)
        return TestCase(input=take(test, "input", str), output=take(test, "output", str), is_public=is_public)
    except ValueError as error:
        raise ValueError(f"`tests[{index}]`: {error}") from error


def _check_arguments(text: str) -> None:
    """A call's arguments are JSON, one on each line that is not blank."""
    for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
        try:
            json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deep or a number too long")
            raise ValueError(f"argument {number} of the call in `input` is not JSON ({reason})") from error


def _check_result(text: str) -> None:
    """What a call returns is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'`output` is {reprlib.repr(text)}, must be JSON, as true, null or "text" are; for Python literals set '
            "`values` to 'python'"
        ) from error


def _test_to_record(test: TestCase) -> dict[str, Any]:
    shown = {"public": True} if test.is_public else {}
    return {"input": test.input, "output": test.output, **shown}


def _choice(record: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    value = record.get(key, default)
    if value not in allowed:
        raise ValueError(f"`{key}` is {reprlib.repr(value)}, must be one of {', '.join(map(str, allowed))}")
    return value


def _at_least_0(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"`{key}` must be a number of at least 0, not {reprlib.repr(value)}")
    return float(value)


def _non_empty(record: dict[str, Any], key: str) -> str:
    text = take(record, key, str)
    if not text.strip():
        raise ValueError(f"`{key}` is empty")
    return text


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _non_empty(record, key)


def unicode_text(text: str, key: str) -> str:
    """The text; ValueError where it could not be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"`{key}` holds half a character ({text[error.start]!a} at {error.start})") from error
    return text


def _positive(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"`{key}` must be a positive number, not {reprlib.repr(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"`{key}` must be a positive number, not one of {len(str(value))} digits") from error
