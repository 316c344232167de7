"""MBPP (Austin et al. 2021): its assertions become programs on standard input, as in the paper, or calls."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from maxk_lightning.data.assertions import Assertion, Mode, parse_assertion, to_test
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import LeftOutError, Row, load_rows, scan
from maxk_lightning.data.selection import TestSelection, first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Problem, TestCase

LAYOUT = {
    "stdin": (
        "The program reads the arguments of `{call}`, each from a line of its own: a list or tuple as values separated "
        "by blanks, a list of lists as one line per row, a string without quotes. It prints the result likewise."
    ),
    "repr": (
        "The program reads the arguments of `{call}`, each as a Python literal on a line of its own, and prints the "
        "`repr` of the result."
    ),
}
"How arguments arrive; without it a model writes a function that reads nothing. `{call}`: the function's signature."


class MBPP:
    """`google-research-datasets/mbpp`. The statement gets a description of the input and one worked example.

    Tests that cannot be turned into standard input (dicts, sets, None, deep nesting, ...) leave their problem out; the
    report lists it. The paper does not say how it converted; its base model's pass@1 of .062 suggests that its prompts
    did not describe the input, so numbers will differ.
    """

    def __init__(
        self,
        path: str = "google-research-datasets/mbpp",
        config: Literal["sanitized", "full"] = "sanitized",
        hub_split: str = "test",
        mode: Mode = "stdin",
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, or a local directory with the same files.
            config: `sanitized` (427 problems, clearer statements) or `full` (974).
            hub_split: `train`, `validation`, `test` or `prompt`.
            mode: `stdin` (CURE's conversion), `repr` (Python literals, lossless) or `function` (JSON calls).
            tests: Which tests judge a problem.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}, must be one of {', '.join(get_args(Mode))}")
        self.path = path
        self.config = config
        self.hub_split = hub_split
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        self.reader = _Reader(mode, tests, instruction)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the file."""
        rows = load_rows(self.path, self.config, split=self.hub_split)
        where = f"{self.path} ({self.config}, {self.hub_split})"
        problems, self.report = scan(rows, self.reader, where, skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _Reader:
    mode: Mode
    tests: TestSelection
    instruction: Instruction
    columns = ("task_id",)

    def facts(self, row: Row) -> Facts:
        return Facts(id=f"MBPP/{take(dict(row), 'task_id', int)}", source="MBPP")

    def why_left_out(self, row: Row) -> str | None:
        return None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        facts = self.facts(row)
        texts = [*take(record, "test_list", list), *(record.get("challenge_test_list") or [])]
        assertions = [parse_assertion(text) for text in texts]
        names = {assertion.function for assertion in assertions}
        if len(names) > 1:
            raise LeftOutError("the assertions call several functions")
        tests = [to_test(assertion, self.mode) for assertion in assertions]
        selected = self.tests.select(facts.id, tests)
        statement = take(record, "text" if "text" in record else "prompt", str)
        signature = signature_of(take(record, "code", str), assertions[0])
        return Problem(
            id=facts.id,
            prompt=self._prompt(statement, signature, assertions[0].function, tests[0]),
            tests=selected,
            function=assertions[0].function if self.mode == "function" else None,
        )

    def _prompt(self, statement: str, signature: str, function: str, example: TestCase) -> str:
        if self.mode == "function":
            return self.instruction.for_function(statement, function, f"def {signature}:\n    ...")
        layout = LAYOUT[self.mode].replace("{call}", signature)
        shown = (
            f"Example input:\n```\n{example.input.rstrip()}\n```\nExample output:\n```\n{example.output.rstrip()}\n```"
        )
        return self.instruction.for_stdin(f"{statement.strip()}\n\n{layout}\n\n{shown}")


def signature_of(code: str, assertion: Assertion) -> str:
    """The called function's signature in the reference code, or its name and number of arguments.

    >>> signature_of("def add(a, b=1): return a + b", parse_assertion("assert add(1, 2) == 3"))
    'add(a, b=1)'
    """
    try:
        nodes = list(ast.walk(ast.parse(code.replace("\r\n", "\n"))))
    except SyntaxError:  # one of the published solutions may be in Python 2; the names are a nicety
        nodes = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == assertion.function:
            return f"{node.name}({ast.unparse(node.args)})"
    return f"{assertion.function}({', '.join(f'x{index + 1}' for index in range(len(assertion.arguments)))})"
