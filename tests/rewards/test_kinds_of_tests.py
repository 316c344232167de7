"""Function-call tests and checkers, on every backend that works here."""

import json
from collections.abc import Iterator

import pytest

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Header, Problem, TestCase


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTestReward]:
    with UnitTestReward(num_workers=1, time_limit_s=0.5) as reward:
        yield reward


def call_problem(function: str, *calls: tuple[list[object], object], header: Header | None = None) -> Problem:
    tests = tuple(
        TestCase(input="\n".join(map(json.dumps, arguments)), output=json.dumps(value)) for arguments, value in calls
    )
    return Problem(id=function, prompt="p", tests=tests, function=function, header=header)


TWO_SUM = call_problem("twoSum", ([[2, 7, 11], 9], [0, 1]), ([[3, 3], 6], [0, 1]), header="livecodebench")
TWO_SUM_METHOD = """
class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        print("looking")
        seen = defaultdict(lambda: -1)
        for i, x in enumerate(nums):
            if seen[target - x] >= 0:
                return [seen[target - x], i]
            seen[x] = i
"""


def rewards_of(reward: UnitTestReward, problem: Problem, codes: list[str]) -> list[float | None]:
    [scores] = reward.score([problem], [[fenced(code) for code in codes]])
    return [score.reward for score in scores]


def test_leetcode_style(reward: UnitTestReward) -> None:
    codes = {
        TWO_SUM_METHOD: 1.0,
        "def twoSum(nums, target): return (0, 1)": 1.0,  # an outer tuple counts as a list
        "def twoSum(nums, target): return [0, 1] if len(nums) == 3 else [1, 0]": 0.5,
        "def twoSum(nums, target): print([0, 1])": 0.0,  # printing is not returning
        "def other(nums, target): return [0, 1]": 0.0,
        "def twoSum(nums): return [0, 1]": 0.0,
        "print('[0, 1]')\nraise SystemExit": 0.0,
        "def twoSum(nums, target): return {0, 1}": 0.0,
        "if __name__ == '__main__': input()\ndef twoSum(nums, target): return [0, 1]": 1.0,
    }
    assert rewards_of(reward, TWO_SUM, list(codes)) == list(codes.values())


@pytest.mark.parametrize("value", [True, None, 1.5, "text \n ü \ud800", {"a": [1, {}]}, [[1], []], -(10**30), ""])
def test_every_json_value_comes_back(reward: UnitTestReward, value: object) -> None:
    problem = call_problem("same", ([value], value), ([[value]], [value]))
    assert rewards_of(reward, problem, ["def same(x): return x", "def same(x): return [[x]]"]) == [1.0, 0.0]


def test_call_without_arguments_and_nan(reward: UnitTestReward) -> None:
    problem = Problem(id="zero", prompt="p", tests=(TestCase(input="", output="7"),), function="zero")
    assert rewards_of(reward, problem, ["def zero(): return 7", "def zero(): return float('nan')"]) == [1.0, 0.0]


CHECKER = """
import sys
numbers, expected, output = (open(path).read().split() for path in sys.argv[1:])
print(1 if sorted(output) == sorted(expected) and numbers[0] == str(len(output)) else 0)
"""
ANY_ORDER = Problem(
    id="any",
    prompt="Print 1..n in any order.",
    tests=(TestCase(input="2\n", output="1 2\n"), TestCase(input="3\n", output="1 2 3\n")),
    checker=CHECKER,
)


def test_checker_decides(reward: UnitTestReward) -> None:
    codes = {
        "print(*range(1, int(input()) + 1))": 1.0,
        "print(*range(int(input()), 0, -1))": 1.0,
        "print(2, 1)": 0.5,
        "print(2, 1); raise ValueError": 0.0,
        "pass": 0.0,
        "while True: pass": 0.0,
    }
    assert rewards_of(reward, ANY_ORDER, list(codes)) == list(codes.values())


@pytest.mark.parametrize(
    ("checker", "expected"),
    [
        ("print(' 100\\n')", 1.0),
        ("print(50)", 0.0),
        ("pass", 0.0),
        ("raise ValueError", 0.0),
        ("syntax error", 0.0),
        ("import os; os.fork(); print(1)", 0.0),
        ("print(1); raise SystemExit(3)", 0.0),
        ("import sys; print(int(sys.stdin.read() == open(sys.argv[1]).read()))", 1.0),
    ],
)
def test_checker_conventions(reward: UnitTestReward, checker: str, expected: float) -> None:
    problem = Problem(id="c", prompt="p", tests=(TestCase(input="1", output="1"),), checker=checker)
    assert rewards_of(reward, problem, ["print(1)"]) == [expected]


def test_bad_function_name_is_refused(reward: UnitTestReward) -> None:
    problem = Problem(id="bad", prompt="p", tests=(TestCase(input="", output="1"),), function="no name")
    with pytest.raises(ValueError, match="`function` is 'no name'"):
        reward.submit(problem, "x")
