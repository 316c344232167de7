"""Tests whose verdict is a Python condition on the returned value: a checker evaluates it, in the sandbox."""

from collections.abc import Iterable
from typing import Any

from maxk_lightning.types import TestCase

_CHECKER = """
import math, sys
from collections import Counter, deque
from math import inf, nan

def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()

arguments = [eval(line) for line in read(sys.argv[1]).split("\\n") if line.strip()]
result = eval(read(sys.argv[3]))
print(int(bool(eval(read(sys.argv[2])))))
"""


def condition_checker(prelude: str = "") -> str:
    """Source of a checker for problems with `values: python` whose expected outputs are conditions.

    A condition is an expression in `result`, the returned value, and `arguments`, the list of what was passed.

    Args:
        prelude: Code that defines further names, such as a reference function.
    """
    return f"{prelude}\n{_CHECKER}"


def call_test(arguments: Iterable[Any], output: str, *, is_public: bool = False) -> TestCase:
    """A test of a call with Python values; `output` is a literal, or a condition."""
    return TestCase(input="".join(f"{argument!r}\n" for argument in arguments), output=output, is_public=is_public)
