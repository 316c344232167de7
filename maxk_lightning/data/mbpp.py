"""MBPP (Austin et al. 2021): its assertions become programs on standard input, as in the paper, or calls."""

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from maxk_lightning.data.assertions import Assertion, Mode, parse_assertion, to_test
from maxk_lightning.data.conditions import condition_checker
from maxk_lightning.data.files import is_data_file
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.report import Facts, LoadReport
from maxk_lightning.data.rows import SHORTENED, Address, LeftOutError, Row, load_problems, texts
from maxk_lightning.data.selection import TestSelection, first
from maxk_lightning.data.sources import check_limit
from maxk_lightning.records import take
from maxk_lightning.types import Compare, Problem, TestCase

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


TASK_IDS: Mapping[str, range] = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"Published splits, of both configurations."


class MBPP:
    """`google-research-datasets/mbpp`. The statement gets a description of the input and one worked example.

    Assertions that cannot be turned into standard input (dicts, sets, None, deep nesting, ...) are left out, and a
    problem without any other goes with them; the report lists both. The paper does not say how it converted; its base
    model's pass@1 of .062 suggests that its prompts did not describe the input, so numbers will differ. Where an
    assertion accepts 240.0 for 240, `tokens` (CURE's rule) does not: some published solutions, 6 of the sanitized test
    split's, fail then, and pass with `compare: tokens_float`.
    """

    def __init__(
        self,
        path: str = "google-research-datasets/mbpp",
        config: Literal["sanitized", "full"] = "sanitized",
        hub_split: Literal["train", "validation", "test", "prompt", "all"] = "test",
        mode: Mode = "stdin",
        inconvertible: Literal["drop_assertion", "leave_out_problem"] = "drop_assertion",
        describe_input: bool = True,
        tests: TestSelection = TestSelection(),  # noqa: B008  (immutable)
        compare: Compare = "tokens",
        instruction: Instruction = Instruction(),  # noqa: B008
        skip_invalid: bool = False,
        limit: int | None = None,
    ) -> None:
        """Choose problems.

        Args:
            path: Hub name, a local directory with the same files, or one file: `mbpp.jsonl` and `sanitized-mbpp.json`
                as they were published, whose splits are ranges of task ids.
            config: `sanitized` (427 problems, clearer statements) or `full` (974); of no account for a file.
            hub_split: `train`, `validation`, `test` or `prompt`; `all` of a file.
            mode: `stdin` (CURE's conversion), `repr` (Python literals on standard input and output, lossless) or
                `function` (calls with Python values).
            inconvertible: What an assertion without a form on standard input costs; `leave_out_problem` is CURE's rule,
                and very likely the paper's.
            describe_input: Describe the input and show an example; the paper's prompts very likely had neither.
            tests: Which tests judge a problem.
            compare: Of mode `stdin`; the others compare values, as assertions do.
            instruction: Words around the statement.
            skip_invalid: Leave malformed rows out, and count them, instead of refusing them.
            limit: Keep the first problems only.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}, must be one of {', '.join(get_args(Mode))}")
        if mode != "stdin" and compare != "tokens":
            raise ValueError(f"compare is {compare!r}, which has no effect in mode {mode!r}: it compares values")
        if hub_split != "all" and hub_split not in TASK_IDS:
            raise ValueError(f"hub_split is {hub_split!r}, must be one of {', '.join(TASK_IDS)}, all")
        if hub_split == "all" and not is_data_file(path):
            raise ValueError("hub_split is 'all', which only a single file has; name one split of the repository")
        self.path = path
        self.config = config
        self.hub_split = hub_split
        self.skip_invalid = skip_invalid
        self.limit = check_limit(limit)
        task_ids = TASK_IDS.get(hub_split) if is_data_file(path) else None
        self.reader = _Reader(mode, inconvertible, describe_input, tests, compare, instruction, hub_split, task_ids)
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the file."""
        address = Address(self.path, self.config, self.hub_split)
        problems, self.report = load_problems(address, self.reader, skip_invalid=self.skip_invalid)
        return first(problems, self.report, self.limit)


@dataclass(frozen=True)
class _Reader:
    mode: Mode
    inconvertible: Literal["drop_assertion", "leave_out_problem"]
    describe_input: bool
    tests: TestSelection
    compare: Compare
    instruction: Instruction
    split: str
    task_ids: range | None
    columns = ("task_id",)

    def facts(self, row: Row) -> Facts:
        return Facts(id=f"MBPP/{take(dict(row), 'task_id', int)}", source="MBPP")

    def why_left_out(self, row: Row) -> str | None:
        is_elsewhere = self.task_ids is not None and row["task_id"] not in self.task_ids
        return f"not of the split {self.split}, by its task id" if is_elsewhere else None

    def parse(self, row: Row) -> Problem:
        record = dict(row)
        statement = take(record, "text" if "text" in record else "prompt", str)
        code = take(record, "code", str).replace("\r\n", "\n")
        assertions, reasons = self._assertions(record, functions_of(code))
        function = assertions[0].function
        has_conditions = any(assertion.condition is not None for assertion in assertions)
        tests = [to_test(_as_condition(each) if has_conditions else each, self.mode) for each in assertions]
        signature = signature_of(code, assertions[0])
        shows_example = self.mode != "function" and self.describe_input
        if shows_example:
            tests[0] = replace(tests[0], is_public=True)
        return Problem(
            id=self.facts(row).id,
            prompt=self._prompt(statement, signature, function, tests[0]),
            tests=self.tests.select(self.facts(row).id, tests),
            compare=self.compare,
            function=function if self.mode == "function" else None,
            values="json" if self.mode == "stdin" else "python",
            checker=condition_checker("\n".join(_imports(record))) if has_conditions else None,
            metadata={SHORTENED: reasons} if reasons else {},
        )

    def _assertions(self, record: dict[str, Any], functions: Collection[str]) -> tuple[list[Assertion], list[str]]:
        """Those that have a form in this mode, and why others have none."""
        lines = [*texts(record, "test_list"), *(texts(record, "challenge_test_list") if _has_challenge(record) else ())]
        assertions: list[Assertion] = []
        reasons: dict[str, None] = {}
        for line in lines:
            try:
                assertion = parse_assertion(line, functions if self.mode == "function" else ())
                to_test(assertion, self.mode)
            except LeftOutError as reason:
                if self.inconvertible == "leave_out_problem":
                    raise
                reasons[str(reason)] = None
            else:
                assertions.append(assertion)
        if not assertions:
            raise LeftOutError(next(iter(reasons), "no tests"))
        if len({assertion.function for assertion in assertions}) > 1:
            raise LeftOutError("the assertions call several functions")
        return assertions, list(reasons)

    def _prompt(self, statement: str, signature: str, function: str, example: TestCase) -> str:
        if self.mode == "function":
            return self.instruction.for_function(statement, function, f"def {signature}:\n    ...")
        if not self.describe_input:
            return self.instruction.for_stdin(statement)
        layout = LAYOUT[self.mode].replace("{call}", signature)
        shown = (
            f"Example input:\n```\n{example.input.rstrip()}\n```\nExample output:\n```\n{example.output.rstrip()}\n```"
        )
        return self.instruction.for_stdin(f"{statement.strip()}\n\n{layout}\n\n{shown}")


def _has_challenge(record: dict[str, Any]) -> bool:
    return record.get("challenge_test_list") is not None


def _imports(record: dict[str, Any]) -> list[str]:
    return texts(record, "test_imports") if record.get("test_imports") is not None else []


def _as_condition(assertion: Assertion) -> Assertion:
    """The same assertion as a condition, for problems that have one of another form."""
    return replace(assertion, condition=assertion.condition or f"result == {assertion.expected!r}")


def functions_of(code: str) -> frozenset[str]:
    """Names of the functions that a program defines; none where it is no Python 3."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):  # one of the published solutions may be in Python 2
        return frozenset()
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


def signature_of(code: str, assertion: Assertion) -> str:
    """The called function's signature in the reference code, or its name and number of arguments.

    >>> signature_of("def add(a, b=1): return a + b", parse_assertion("assert add(1, 2) == 3"))
    'add(a, b=1)'
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError):  # one of the published solutions may be in Python 2; the names are a nicety
        nodes = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == assertion.function:
            return f"{node.name}({ast.unparse(node.args)})"
    return f"{assertion.function}({', '.join(f'x{index + 1}' for index in range(len(assertion.arguments)))})"
