"""HumanEval+ and MBPP+ (Liu et al. 2023): functions that are called on many inputs."""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from maxk_lightning.data.assertions import literal_value, parse_assertion
from maxk_lightning.data.conditions import call_test, condition_checker
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import SHORTENED, Address, LeftOutError, Row, load_problems, texts
from maxk_lightning.data.selection import TestSelection, first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Problem, TestCase

REFERENCE = "ref_func"
"Name of the reference function in tests that hold no results."
ORACLES: Mapping[str, tuple[str, str]] = {
    "find_zero": (
        "abs(poly(*arguments, result)) <= 0.0001",
        "def poly(xs, x):\n    return sum(coeff * math.pow(x, i) for i, coeff in enumerate(xs))",
    ),
    "surface_Area": (
        "result == {expected} or result == surface_Area(*arguments)",
        "def surface_Area(base, height):\n"
        "    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))",
    ),
    "digit_distance_nums": (
        "result == {expected} or result == digit_distance_nums(*arguments)",
        "def digit_distance_nums(a, b):\n"
        "    a, b = str(a), str(b)\n"
        "    size = max(len(a), len(b))\n"
        "    return sum(abs(int(x) - int(y)) for x, y in zip(a.zfill(size), b.zfill(size)))",
    ),
    "are_equivalent": ("True", ""),
    "sum_div": ("result == {expected} or result == 0", ""),
}
"""Function -> condition and what it needs: what EvalPlus accepts beside its own answer
(evalplus/eval/_special_oracle.py, commit 26d6d00). The published test of `find_zero` unpacks a number, which nothing
passes."""
ANSWER_BYTES: Mapping[str, Callable[..., float]] = {
    "string_sequence": lambda n: 7.0 * n,
    "make_a_pile": lambda n: 9.0 * n,
    "tri": lambda n: 16.0 * n,
    "all_prefixes": lambda text: len(text) ** 2 / 2,
    "combinations_colors": lambda items, n: math.comb(len(items) + n - 1, n) * n * len(repr(items)) / len(items),
    "get_coordinates": lambda point: 3.0 ** len(point) * (len(repr(point)) + 2),
}
"Function with a reference in place of results -> about how long its answer is, as text."
MAX_ANSWER_BYTES = 2_000_000
"""Tests with longer answers are left out, and counted: the sandbox gives a checker no more (`UnitTestReward` stops at
8 MiB of output, EvalPlus at 4 GiB of memory)."""
TOO_LONG = f"a test whose answer has more than {MAX_ANSWER_BYTES} characters"
SET_CONDITION = "set(result) == set({expected})"
NOT_NONE_CONDITION = "result == {expected} if isinstance(result, bool) else {expected} == (result is not None)"


class EvalPlus:
    """`evalplus/humanevalplus` or `evalplus/mbppplus`, as calls with Python values, graded as EvalPlus grades.

    Equal as Python compares, or floats within the row's tolerance; sets, reference functions and other special oracles
    are conditions that a checker evaluates in the sandbox. A test in another form than the published ones leaves its
    problem out, and the report lists it, as it does the few tests whose answers are millions of characters. The reward
    is ours, the fraction of tests, where EvalPlus asks for all.
    """

    def __init__(
        self,
        path: str = "evalplus/humanevalplus",
        hub_split: str = "test",
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        compare: Literal["evalplus", "equal"] = "evalplus",
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file of rows (`*-OriginFmt.jsonl.gz`).
            hub_split: Split of the data set; a file is read whole.
            tests: Which tests judge a problem.
            compare: `evalplus`: floats within the row's tolerance; `equal`: exactly.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.path = path
        self.hub_split = hub_split
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        if compare not in ("evalplus", "equal"):
            raise ValueError(f"compare is {compare!r}, must be evalplus or equal")
        self.reader = _Reader(tests, compare == "evalplus", instruction)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the file."""
        address = Address(self.path, split=self.hub_split)
        problems, self.report = load_problems(address, self.reader, skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _Reader:
    tests: TestSelection
    has_tolerance: bool
    instruction: Instruction
    columns = ("task_id",)

    def facts(self, row: Row) -> Facts:
        task_id = row.get("task_id")
        if isinstance(task_id, int):
            return Facts(id=f"Mbpp/{task_id}", source="MBPP+")
        return Facts(id=take(dict(row), "task_id", str), source="HumanEval+")

    def why_left_out(self, row: Row) -> str | None:
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        prompt = take(record, "prompt", str)
        published = read_test(take(record, "test", str))
        if "entry_point" in record:
            function, starter = take(record, "entry_point", str), prompt
            statement = "Complete this function."
        else:
            function = published.function
            if function == "candidate":  # a copy that checks as HumanEval+ does
                function = parse_assertion(next(iter(texts(record, "test_list")), "")).function
            statement, starter = prompt, f"def {function}(...):"
        if not function.isidentifier():
            raise ValueError(f"`entry_point` is {function!r}, not a Python name")
        published, num_too_long = without_long_answers(published, function)
        tests, checker = graded(published, function)
        return Problem(
            id=self.facts(row).id,
            prompt=self.instruction.for_function(statement, function, starter),
            tests=self.tests.select(self.facts(row).id, tests),
            function=function,
            values="python",
            atol=published.atol if self.has_tolerance and checker is None else None,
            checker=checker,
            metadata={SHORTENED: [TOO_LONG]} if num_too_long else {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTest:
    """What the text of a published test says."""

    function: str
    "Name that it calls."
    inputs: Sequence[Sequence[Any]]
    "Arguments per call."
    results: Sequence[Any] | None
    "Expected values; None: a reference function gives them."
    atol: float
    "Absolute tolerance of floats."
    condition: str | None
    "What must be true, with `{expected}` for the expected value; None: equal, or within the tolerance."
    prelude: str
    "Code that the condition needs."


def read_test(code: str) -> PublishedTest:
    """Read the program of a row's `test`; it is not executed.

    Raises:
        LeftOutError: it compares in another way than the published ones.
        ValueError: it is not Python, or its lists do not match.
    """
    try:
        module = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`test` is not Python: {error}") from error
    inputs, results = (_literal_list(module, name) for name in ("inputs", "results"))
    if inputs is None:
        raise LeftOutError("the test holds no literal `inputs`")
    if results is not None and len(inputs) != len(results):
        raise ValueError(f"`test` has {len(inputs)} inputs and {len(results)} results")
    reference = _definition(module, REFERENCE)
    if results is None and reference is None:
        raise LeftOutError("the test holds neither `results` nor a reference function")
    function, atol = _call(module)
    condition = f"result == {REFERENCE}(*arguments)" if reference else _condition(module)
    return PublishedTest(
        function=function,
        inputs=inputs,
        results=None if reference else results,
        atol=atol,
        condition=condition,
        prelude=_without_checks(module) if reference else "",
    )


def without_long_answers(published: PublishedTest, function: str) -> tuple[PublishedTest, int]:
    """The test without the inputs whose answers are too long for a checker, and how many those are."""
    if published.results is not None or function not in ANSWER_BYTES:
        return published, 0
    inputs = [each for each in published.inputs if _num_bytes(function, each) <= MAX_ANSWER_BYTES]
    return replace(published, inputs=inputs), len(published.inputs) - len(inputs)


def _num_bytes(function: str, arguments: Sequence[Any]) -> float:
    try:
        return ANSWER_BYTES[function](*arguments)
    except (TypeError, ValueError, ZeroDivisionError):  # arguments of another kind: the reference fails or is short
        return 0.0
    except OverflowError:
        return math.inf


def graded(published: PublishedTest, function: str) -> tuple[list[TestCase], str | None]:
    """The tests, and the checker where their outputs are conditions."""
    condition, prelude = ORACLES.get(function, (published.condition, published.prelude))
    expected = published.results if published.results is not None else [None] * len(published.inputs)
    pairs = zip(published.inputs, expected, strict=True)
    if condition is None:
        return [call_test(arguments, repr(value)) for arguments, value in pairs], None
    tests = [call_test(arguments, condition.replace("{expected}", repr(value))) for arguments, value in pairs]
    return tests, condition_checker(prelude)


def _literal_list(module: ast.Module, name: str) -> list[Any] | None:
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            values = literal_value(node.value)
            if not isinstance(values, list | tuple):
                raise ValueError(f"`test`: {name} is no list")
            if name == "inputs" and not all(isinstance(value, list | tuple) for value in values):
                raise ValueError("`test`: inputs must be lists of arguments")
            return list(values)
    return None


def _definition(module: ast.Module, name: str) -> ast.FunctionDef | None:
    found = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[0] if found else None


def _call(module: ast.Module) -> tuple[str, float]:
    """The function that is called on each input, and the tolerance that is given to `assertion`."""
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Name(id="assertion"), args=[ast.Call(func=ast.Name(id=name)), _, atol]):
                return name, float(literal_value(atol))
            case ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id="_poly")))):
                return "find_zero", 0.0
    raise LeftOutError("the test compares in a way of its own")


def _condition(module: ast.Module) -> str | None:
    """How `assertion` compares, recognised by what is special in it."""
    assertion = _definition(module, "assertion")
    text = "" if assertion is None else ast.unparse(assertion)
    if "set(out)" in text:
        return SET_CONDITION
    return NOT_NONE_CONDITION if "out is not None" in text else None


def _without_checks(module: ast.Module) -> str:
    """The reference function with its imports and helpers, without what compares and calls."""
    unwanted = {"assertion", "is_floats", "check"}
    return "\n".join(
        ast.unparse(node)
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom | ast.Assign)
        if getattr(node, "name", "") not in unwanted and "numpy" not in ast.unparse(node)
        if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("inputs", "results"))
    )
