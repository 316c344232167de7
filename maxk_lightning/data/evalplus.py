"""HumanEval+ and MBPP+ (Liu et al. 2023): functions that are called on many inputs."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maxk_lightning.data.assertions import as_json, parse_assertion
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import LeftOutError, Row, load_rows, scan
from maxk_lightning.data.selection import TestSelection, first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Problem, TestCase

SPECIAL = ("ref_func", "set(out)", "is_equiv", "_poly")
"Words in a test that show a comparison of its own."


class EvalPlus:
    """`evalplus/humanevalplus` or `evalplus/mbppplus`, as calls with JSON arguments.

    Problems whose tests need more than equality of JSON values (floats within a tolerance, sets, answers computed by a
    reference, several right answers) are left out, and listed: expect fewer than the 164 and 378 that are published.
    """

    def __init__(
        self,
        path: str = "evalplus/humanevalplus",
        hub_split: str = "test",
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, or a local directory with the same files.
            hub_split: Split of the data set.
            tests: Which tests judge a problem.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        self.path = path
        self.hub_split = hub_split
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.reader = _Reader(tests, instruction)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the file."""
        rows = load_rows(self.path, split=self.hub_split)
        problems, self.report = scan(
            rows, self.reader, f"{self.path} ({self.hub_split})", skip_invalid=self.skip_invalid
        )
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _Reader:
    tests: TestSelection
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
        facts = self.facts(row)
        tests = calls_of(take(record, "test", str))
        statement, function, starter = _task(record)
        return Problem(
            id=facts.id,
            prompt=self.instruction.for_function(statement, function, starter),
            tests=self.tests.select(facts.id, tests),
            function=function,
        )


def _task(record: dict[str, Any]) -> tuple[str, str, str]:
    """Statement, function name and starter code."""
    prompt = take(record, "prompt", str)
    if "entry_point" in record:
        return "Complete this function.", take(record, "entry_point", str), prompt
    assertions = take(record, "test_list", list)
    if not assertions:
        raise LeftOutError("no tests")
    function = parse_assertion(assertions[0]).function
    return prompt, function, f"def {function}(...):"


def calls_of(code: str) -> list[TestCase]:
    """The literal lists `inputs` and `results` of a test program, as call tests; the program is not executed.

    Raises:
        LeftOutError: the program compares in a way of its own, or a value has no form in JSON.
    """
    if any(word in code for word in SPECIAL):
        raise LeftOutError("graded by a special comparison or a reference function")
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError as error:
        raise ValueError(f"`test` is not Python: {error.msg}") from error
    lists = {
        node.targets[0].id: _literal_list(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if node.targets[0].id in ("inputs", "results")
    }
    if len(lists) < 2:
        raise LeftOutError("the test holds no literal `inputs` and `results`")
    inputs, results = lists["inputs"], lists["results"]
    if len(inputs) != len(results):
        raise ValueError(f"`test` has {len(inputs)} inputs and {len(results)} results")
    return [_call(arguments, result) for arguments, result in zip(inputs, results, strict=True)]


def _call(arguments: Any, result: Any) -> TestCase:
    if _has_float(result):
        raise LeftOutError("expected values are floats, compared within a tolerance")
    return TestCase(input="\n".join(map(as_json, arguments)), output=as_json(result))


def _literal_list(node: ast.expr) -> list[Any]:
    try:
        values = ast.literal_eval(node)
    except ValueError as error:
        raise LeftOutError("a value in the test is not a literal") from error
    return list(values)


def _has_float(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_float, value))
    return isinstance(value, float)
