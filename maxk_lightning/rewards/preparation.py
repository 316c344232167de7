"""What is computed once per problem and shared by all programs that try it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maxk_lightning.records import check_function
from maxk_lightning.rewards.sandbox.protocol import Limits
from maxk_lightning.types import Problem, TestCase

JUDGED_BY = ("compare", "checker", "function", "values", "atol", "header")
"Fields of a problem that a verdict depends on, beside its tests and limits."


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedProblem:
    """A problem's selected tests, ready to run."""

    problem: Problem
    "As it was read."
    inputs: tuple[bytes, ...]
    "Standard inputs of the selected tests."
    expected: tuple[bytes, ...]
    "Expected outputs; they stay in this process unless a checker needs them."
    limits: Limits
    "Of every run."
    digest: bytes
    "Identifies everything that a verdict depends on beside the program."

    @property
    def num_bytes(self) -> int:
        """Of the encoded tests."""
        return sum(map(len, self.inputs)) + sum(map(len, self.expected))


def prepare(problem: Problem, tests: Sequence[TestCase], limits: Limits) -> PreparedProblem:
    """Encode the tests of a problem; ValueError when it has none or its function cannot be called."""
    if not tests:
        raise ValueError(f"problem {problem.id!r} has no tests")
    try:
        check_function(problem.function, problem.checker if problem.values == "json" else None)
    except ValueError as error:
        raise ValueError(f"problem {problem.id!r}: {error}") from error
    inputs = tuple(encode(test.input) for test in tests)
    expected = tuple(encode(test.output) for test in tests)
    return PreparedProblem(
        problem=problem,
        inputs=inputs,
        expected=expected,
        limits=limits,
        digest=_digest([*inputs, *expected], [*(getattr(problem, key) for key in JUDGED_BY), repr(limits)]),
    )


def encode(text: str) -> bytes:
    """UTF-8; bytes that were smuggled in as lone surrogates come out as they were, other surrogates as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _digest(contents: list[bytes], settings: list[Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


def program_key(prepared: PreparedProblem, program: bytes) -> bytes:
    """Identifies a program run on a problem's tests."""
    return hashlib.sha256(prepared.digest + program).digest()
