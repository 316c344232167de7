"""`assert f(arguments) == value` as a test: on standard input and output, or as a call."""

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maxk_lightning.data.conditions import call_test
from maxk_lightning.data.rows import LeftOutError
from maxk_lightning.types import TestCase

Mode = Literal["stdin", "repr", "function"]
Scalar = bool | int | float | str
OTHER_FORM = "an assertion is not of the form f(...) == value"
_CONSTANTS = {"inf": math.inf, "nan": math.nan}
_FOLDED: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """A call and what it must return."""

    function: str
    "Name that is called."
    arguments: tuple[Any, ...]
    "Values of the positional arguments."
    expected: Any = None
    "Value that must be returned, unless there is a condition."
    condition: str | None = None
    "Python expression in `result` that must be true, where the assertion is more than `f(...) == value`."


def parse_assertion(text: str, functions: Collection[str] = ()) -> Assertion:
    """Read an assertion with literal arguments; nothing is executed.

    Args:
        text: The statement.
        functions: Names of which one may be called anywhere in the assertion; none: only `f(...) == value` is read.

    Raises:
        LeftOutError: it has another form.

    >>> parse_assertion("assert add(1, [2]) == (3, 'x')")
    Assertion(function='add', arguments=(1, [2]), expected=(3, 'x'), condition=None)
    >>> parse_assertion("assert set(f(1)) == {1}", ["f"])
    Assertion(function='f', arguments=(1,), expected=None, condition='set(result) == {1}')
    """
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`{text.strip()[:60]}` is not Python: {error}") from error
    match body:
        case [
            ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id=name)) as call, ops=[ast.Eq()]) as comparison)
        ] if not _calls(comparison, functions) or (name in functions and _is_literal(comparison.comparators[0])):
            arguments, expected = _arguments(call), literal_value(comparison.comparators[0])
            return Assertion(function=name, arguments=arguments, expected=expected)
        case [ast.Assert(test=test)]:
            return _conditional(test, functions)
    raise LeftOutError(OTHER_FORM)


def _conditional(test: ast.expr, functions: Collection[str]) -> Assertion:
    calls = _calls(test, functions)
    if len(calls) != 1:
        raise LeftOutError(OTHER_FORM if not calls else "an assertion calls the function several times")
    arguments, name = _arguments(calls[0]), _name(calls[0].func)
    condition = ast.unparse(_ResultInstead(calls[0]).visit(test))
    return Assertion(function=name, arguments=arguments, condition=condition)


def _calls(test: ast.expr, functions: Collection[str]) -> list[ast.Call]:
    return [node for node in ast.walk(test) if isinstance(node, ast.Call) and _name(node.func) in functions]


class _ResultInstead(ast.NodeTransformer):
    """Puts the name `result` in the place of a call."""

    def __init__(self, call: ast.Call) -> None:
        self._call = call

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return ast.Name(id="result") if node is self._call else self.generic_visit(node)  # type: ignore[return-value]


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _arguments(call: ast.Call) -> tuple[Any, ...]:
    if call.keywords:
        raise LeftOutError("an assertion calls with keywords")
    return tuple(map(literal_value, call.args))


def _is_literal(node: ast.expr) -> bool:
    try:
        literal_value(node)
    except LeftOutError:
        return False
    return True


def literal_value(node: ast.expr) -> Any:
    """The value of a literal, of `inf` and `nan`, and of sums and products of numbers.

    Raises:
        LeftOutError: it is none of these.
    """
    try:
        return ast.literal_eval(_Folded().visit(node))
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise LeftOutError("an assertion holds a value that is not a literal") from error


class _Folded(ast.NodeTransformer):
    """Computes what `ast.literal_eval` does not."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        if type(node.op) in _FOLDED and _is_number(left) and _is_number(right):
            return ast.Constant(_FOLDED[type(node.op)](left.value, right.value))
        return ast.BinOp(left=left, op=node.op, right=right)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def to_test(assertion: Assertion, mode: Mode) -> TestCase:
    """Write an assertion as a test.

    - `stdin` (CURE's rule, Wang et al. 2025, C.2): each argument on a line of its own; a flat sequence as values
      separated by blanks, a sequence of sequences as one line per row; strings without quotes. The kind of a sequence
      and the difference between 1 and "1" are lost;
    - `repr`: one Python literal per line, nothing is lost;
    - `function`: likewise, and the function is called.

    Raises:
        LeftOutError: a value that the form cannot hold, or a condition outside `function`.
    """
    if mode == "function":
        return call_test(assertion.arguments, assertion.condition or repr(assertion.expected))
    if assertion.condition is not None:
        raise LeftOutError(OTHER_FORM)
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
    if not all(word.split() == [word] for word in words):
        raise LeftOutError("a string with blanks inside a sequence has no form on standard input")
    return " ".join(words)


def _as_word(value: Scalar) -> str:
    word = str(value)
    if "\n" in word or "\r" in word:
        raise LeftOutError("a string with a line break has no form on standard input")
    return word


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


WRITERS: Mapping[Mode, Callable[[Any], str]] = {"stdin": _as_lines, "repr": repr}
"One writer of values per mode on standard input."
