"""Python literals of untrusted programs: against `ast.literal_eval`, against EvalPlus' rule, under fuzzing."""

import ast
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.comparison import same_literal
from maxk_lightning.rewards.literals import read_literal
from maxk_lightning.rewards.sandbox.child import literal_of
from maxk_lightning.types import Problem, TestCase

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.complex_numbers()
)
VALUES = st.recursive(
    SCALARS.filter(lambda x: x == x),
    lambda item: (
        st.one_of(
            st.lists(item), st.lists(item).map(tuple), st.dictionaries(st.text() | st.integers() | st.tuples(), item)
        )
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_the_sandbox_writes_and_what_repr_writes_reads_back(value: object) -> None:
    assert read_literal(repr(value)) == value
    assert read_literal(literal_of(value)) == value
    assert same_literal(literal_of(value).encode(), repr(value).encode())


@given(st.text(alphabet="[](){},:'\"\\ \n+-1.5ejnfaixCounterset", max_size=40))
def test_any_text_is_refused_or_read_as_python_reads_it(text: str) -> None:
    try:
        ours = read_literal(text)
    except ValueError:
        return
    try:
        theirs = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError):
        return  # `inf`, `Counter(...)` and the like
    assert ours == theirs or ours != ours


@pytest.mark.parametrize("text", ["set(range(10**9))", "iter(range(9))", "__import__('os')", "a.b", "[].x", "f''"])
def test_nothing_is_called_or_looked_up(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_literal(text)


@pytest.mark.parametrize("text", ["[" * 10**6, "-" * 10**6, "1" * 10**6, "{" * 10**6, "'" * 10**6, "set(" * 10**6])
def test_hostile_text_costs_linear_time(text: str) -> None:
    start = time.process_time()
    assert not same_literal(text.encode(), (b"[1]" * 10**6))
    with pytest.raises(ValueError, match=r"."):
        read_literal(text)
    assert time.process_time() - start < 10.0  # quadratic work would take hours


# evalplus/eval/__init__.py, commit 26d6d00, restated with numpy
def _evalplus(out: object, exp: object, atol: float) -> bool:
    def is_floats(x: object) -> bool:
        if isinstance(x, float):
            return True
        return isinstance(x, list | tuple) and bool(x) and all(isinstance(i, float) for i in x)

    exact = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if exact or atol == 0:
        return bool(exact)
    try:
        assert type(out) is type(exp)
        if isinstance(exp, list | tuple):
            assert len(out) == len(exp)  # type: ignore[arg-type]
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)  # type: ignore[arg-type]
    except (AssertionError, TypeError, ValueError):
        return False
    return True


PAIRS = [
    (1.0000001, 1.0), (1.00001, 1.0), (1, 1.0), (1.0, 1), (2, 2.0000001), (float("inf"), float("inf")),
    (float("nan"), 1.0),
    ([1.0, 2.0000001], [1.0, 2.0]), ((1.0, 2.0000001), [1.0, 2.0]), ([1.0], [1.0, 1.0]), ([1, 2.0000001], [1, 2.0]),
    ([[1.0, 2.0000001]], [[1.0, 2.0]]), ("a", "a"), ("a", "b"), ("a  b", "a b"), (None, 1.0), ([None], [1.0]),
    (True, 1),
    ((1, 2), [1, 2]), ({1: 1.0000001}, {1: 1.0}), ({1.0000001}, {1.0}), (1 + 1e-9j, 1 + 0j), ([], []), ([], [1.0]),
    (float("inf"), 1e308), (Counter("aab"), {"a": 2, "b": 1}), ([True], [1.0]), (10**400, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("atol", [0.0, 1e-4])
@pytest.mark.parametrize(("out", "exp"), PAIRS, ids=repr)
def test_tolerance_is_that_of_evalplus(out: object, exp: object, atol: float) -> None:
    assert same_literal(literal_of(out).encode(), repr(exp).encode(), atol) == _evalplus(out, exp, atol)


def _problem(tests: list[tuple[str, str]], **facts: object) -> Problem:
    cases = tuple(TestCase(input=given, output=expected) for given, expected in tests)
    return Problem(id="x", prompt="p", tests=cases, **facts)  # type: ignore[arg-type]


CASES = [
    (_problem([("(1, 2)\n", "(1, 2)")], function="f", values="python"), "def f(x): return x", 1.0),
    (_problem([("(1, 2)\n", "(1, 2)")], function="f", values="python"), "def f(x): return list(x)", 0.0),
    (_problem([("inf\nnan\n", "{2: {inf}}")], function="f", values="python"), "def f(a, b): return {2: {a}}", 1.0),
    (_problem([("2\n", "1.0")], function="f", values="python", atol=0.0), "def f(x): return 1.0000001", 1.0),
    (_problem([("2\n", "1.0")], function="f", values="python"), "def f(x): return 1.0000001", 0.0),
    (_problem([("2\n", "1")], function="gcd", values="python"), "pass", 0.0),
    (_problem([("12\n18\n", "6")], function="gcd"), "pass", 0.0),
    (_problem([("12\n18\n", "6")], function="gcd", header="livecodebench"), "pass", 0.0),
    (_problem([("12\n18\n", "6")], function="gcd", header="livecodebench"), "from math import gcd", 1.0),
    (_problem([("2\n3\n5\n", "3")], function="f", header="livecodebench"), "def f(*x): return pow(*x)", 1.0),
    (_problem([("2\n3\n5\n", "3")], function="f"), "def f(*x): return pow(*x)", 1.0),
    (_problem([("4\n", "24")], function="f"), "def f(x): return factorial(x)", 0.0),
    (
        _problem([("9000\n", "9000\n")], header="livecodebench"),
        "def f(n):\n    return n and 1 + f(n - 1)\nassert datetime.datetime and List\nprint(f(int(input())))",
        1.0,
    ),
    (_problem([("", "1\n")]), "print(gcd(1, 1))", 0.0),
    (_problem([("", "{1: 'a', 2: 240}\n")], values="python"), "print({2: 240.0, 1: 'a'})", 1.0),
    (_problem([("", "'a  b'\n")], values="python"), "print(repr('a b'))", 0.0),
    (_problem([("", '"a  b"')], function="f"), "def f(): return 'a b'", 0.0),
    (_problem([("", '["a"]')], function="f"), "def f(): return ('a',)", 1.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def scores() -> list[float | None]:
    with UnitTestReward(num_workers=1) as reward:
        futures = [reward.submit(problem, f"```python\n{program}\n```") for problem, program, _ in CASES]
        return [future.result().reward for future in futures]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[program for _, program, _ in CASES])
def test_verdicts_on_values(index: int, scores: list[float | None]) -> None:
    assert scores[index] == CASES[index][2]


def test_conditions_see_the_value_and_cannot_be_forged() -> None:
    from maxk_lightning.data.conditions import condition_checker

    problem = _problem(
        [("[1, 2]\n", "set(result) == set(arguments[0])")], function="f", values="python", checker=condition_checker()
    )
    forged = "import os\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, b'print(1) or exit()')\n"
    programs = {
        "def f(x): return map(int, [2, 1, 1])": 1.0,
        "def f(x): return [1]": 0.0,
        "def f(x): return object()": 0.0,
        "pass": 0.0,
        f"{forged}        except OSError: pass\n    os._exit(0)": 0.0,
    }
    with UnitTestReward(num_workers=1) as reward:
        [scored] = reward.score([problem], [[f"```python\n{program}\n```" for program in programs]])
    assert [score.reward for score in scored] == list(programs.values())
