"""`assert f(arguments) == value` as a test: on standard input and output, or as a call."""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maxk_lightning.data.rows import LeftOutError
from maxk_lightning.types import TestCase

Mode = Literal["stdin", "repr", "function"]
Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """A call and what it must return."""

    function: str
    "Name that is called."
    arguments: tuple[Any, ...]
    "Values of the positional arguments."
    expected: Any
    "Value that must be returned."


def parse_assertion(text: str) -> Assertion:
    """Read an assertion with literal arguments and a literal value; nothing is executed.

    Raises:
        LeftOutError: it has another form.

    >>> parse_assertion("assert add(1, [2]) == (3, 'x')")
    Assertion(function='add', arguments=(1, [2]), expected=(3, 'x'))
    """
    try:
        body = ast.parse(text.strip()).body
    except SyntaxError as error:
        raise ValueError(f"`{text.strip()[:60]}` is not Python: {error.msg}") from error
    match body:
        case [
            ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id=name)) as call, ops=[ast.Eq()]) as comparison)
        ]:
            if call.keywords:
                raise LeftOutError("an assertion calls with keywords")
            values = [_literal(node) for node in (*call.args, comparison.comparators[0])]
            return Assertion(function=name, arguments=tuple(values[:-1]), expected=values[-1])
    raise LeftOutError("an assertion is not of the form f(...) == value")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise LeftOutError("an assertion holds a value that is not a literal") from error


def to_test(assertion: Assertion, mode: Mode) -> TestCase:
    """Write an assertion as a test.

    - `stdin` (CURE's rule, Wang et al. 2025, C.2): each argument on a line of its own; a flat sequence as values
      separated by blanks, a sequence of sequences as one line per row; strings without quotes. The kind of a sequence
      and the difference between 1 and "1" are lost;
    - `repr`: one Python literal per line, nothing is lost;
    - `function`: one JSON value per line, and the function is called; tuples become lists.

    Raises:
        LeftOutError: a value that the form cannot hold.
    """
    write = WRITERS[mode]
    lines = [write(argument) for argument in assertion.arguments]
    return TestCase(input="".join(f"{line}\n" for line in lines), output=f"{write(assertion.expected)}\n")


def _as_lines(value: Any) -> str:
    if _is_scalar(value):
        return _as_word(value)
    if not isinstance(value, list | tuple):
        raise LeftOutError(f"a value of type {type(value).__name__} has no form on standard input")
    if not value:
        raise LeftOutError("an empty sequence has no form on standard input")
    if all(map(_is_scalar, value)):
        return _as_row(value)
    if all(isinstance(row, list | tuple) and row and all(map(_is_scalar, row)) for row in value):
        return "\n".join(map(_as_row, value))
    raise LeftOutError("a sequence nested deeper than two, or unevenly, has no form on standard input")


def _as_row(values: Sequence[Scalar]) -> str:
    words = [_as_word(value) for value in values]
    if not all(len(word.split()) == 1 for word in words):
        raise LeftOutError("a string with blanks inside a sequence has no form on standard input")
    return " ".join(words)


def _as_word(value: Scalar) -> str:
    word = str(value)
    if "\n" in word or "\r" in word:
        raise LeftOutError("a string with a line break has no form on standard input")
    return word


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _as_repr(value: Any) -> str:
    return repr(value)


def as_json(value: Any) -> str:
    """One line of JSON that stands for the value, tuples as lists; `LeftOutError` where JSON has no such value."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LeftOutError("a value has no form in JSON") from error
    if json.loads(text) != _tuples_as_lists(value):
        raise LeftOutError("a value has no form in JSON")
    return text


def _tuples_as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_tuples_as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _tuples_as_lists(item) for key, item in value.items()}
    return value


WRITERS: Mapping[Mode, Callable[[Any], str]] = {"stdin": _as_lines, "repr": _as_repr, "function": as_json}
"One writer of values per mode."
