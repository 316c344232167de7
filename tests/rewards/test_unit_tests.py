"""The reward end to end, on programs whose verdict is plain."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Problem, Score, TestCase

SQUARES = Problem(
    id="squares",
    prompt="Print the square of n.",
    tests=tuple(TestCase(input=f"{n}\n", output=f"{n * n}\n") for n in range(4)),
    time_limit_s=0.5,
)


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\n"


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTestReward]:
    with UnitTestReward(backend="plain", num_workers=2, wall_factor=3.0) as reward:
        yield reward


def test_fraction_of_tests(reward: UnitTestReward) -> None:
    programs = {
        "print(int(input()) ** 2)": 1.0,
        "print(int(input()))": 0.5,
        "print(4)": 0.25,
        "print(int(input()) ** 2); raise ValueError": 0.0,
        "def f(:": 0.0,
        "": 0.0,
    }
    [scores] = reward.score([SQUARES], [[fenced(code) for code in programs]])
    assert [score.reward for score in scores] == list(programs.values())
    assert scores[1].verdicts == ("passed", "passed", "wrong_answer", "wrong_answer")


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("while True: pass", "time_limit"),
        ("import time; time.sleep(60)", "time_limit"),
        ("x = bytearray(4 << 30)", "memory_limit"),
        ("while True: print('x' * 100000)", "output_limit"),
        ("import os; os.fork()", "runtime_error"),
        ("import os; os.kill(os.getpid(), 9)", "runtime_error"),
        ("raise SystemExit(86)", "memory_limit"),
    ],
)
def test_limits(reward: UnitTestReward, code: str, verdict: str) -> None:
    [[score]] = reward.score([SQUARES], [[fenced(code)]])
    assert replace(score, behaviour=None) == Score(reward=0.0, verdicts=(verdict,) * 4)  # type: ignore[arg-type]


def test_no_code_is_zero_and_never_runs_prose(reward: UnitTestReward) -> None:
    [[score]] = reward.score([SQUARES], [["print(int(input()) ** 2)"]])
    assert replace(score, behaviour=None) == Score(reward=0.0, verdicts=("no_code",) * 4)


def test_binary_and_max_tests() -> None:
    with UnitTestReward(backend="plain", num_workers=1, is_binary=True, max_tests=2) as reward:
        codes = ["print(int(input()))", "print(0)"]
        [scores] = reward.score([SQUARES], [[fenced(code) for code in codes]])
    assert [score.reward for score in scores] == [1.0, 0.0]
    assert len(scores[0].verdicts) == 2


SIGNS = Problem(
    id="signs",
    prompt="p",
    tests=tuple(TestCase(input=str(number), output=sign) for number, sign in ((3, "1"), (-3, "-1"), (4, "1"))),
    function="sign",
)


@pytest.mark.parametrize(
    ("body", "share", "without_constants"),
    [
        ("return 1", 2 / 3, 0.0),
        ("return 1.0 if x else 1", 2 / 3, 0.0),
        ("return x - 2", 1 / 3, 1 / 3),
        ("return [] if x == 4 else 1", 1 / 3, 1 / 3),
        ("return {3: 1}[x]", 1 / 3, 1 / 3),
        ("return 1 if x > 0 else -1", 1.0, 1.0),
        ("return 0", 0.0, 0.0),
    ],
)
def test_constants_earn_nothing_where_they_are_not_allowed(body: str, share: float, without_constants: float) -> None:
    completion = fenced(f"def sign(x):\n    {body}")
    for settings, expected in (({}, share), ({"allow_constant": False}, without_constants)):
        with UnitTestReward(num_workers=1, **settings) as reward:
            [[score]] = reward.score([SIGNS], [[completion]])
        assert score.reward == expected


def test_a_constant_that_every_test_expects_is_right() -> None:
    problem = replace(SIGNS, tests=(SIGNS.tests[0], SIGNS.tests[2]))
    with UnitTestReward(num_workers=1, allow_constant=False) as reward:
        right, partly = reward.score(
            [problem], [[fenced(f"def sign(x):\n    return {b}") for b in ("1", "{3: 1}[x]")]]
        )[0]
    assert (right.reward, partly.reward) == (1.0, 0.5)  # the second fails on 4


def test_constants_under_a_checker_and_in_a_cache_file(tmp_path: Path) -> None:
    problem = replace(
        SIGNS,
        function=None,
        tests=SIGNS.tests,
        checker="import sys\nprint(int(len({open(name).read().strip() for name in sys.argv[2:4]}) == 1))",
    )
    file = str(tmp_path / "verdicts.sqlite")
    for cached in (None, file, file):
        with UnitTestReward(num_workers=1, cache_file=cached, allow_constant=False) as reward:
            [scores] = reward.score([problem], [[fenced("print(1)"), fenced("print(int(input()) - 2)")]])
        assert [score.reward for score in scores] == [0.0, 1 / 3]
    with UnitTestReward(num_workers=1, cache_file=file) as reward:
        [[score]] = reward.score([problem], [[fenced("print(1)")]])
    assert score.reward == 2 / 3


def test_tests_may_be_the_hidden_or_the_public_ones() -> None:
    """n is right for the public tests 0 and 1 alone."""
    tests = [replace(test, is_public=place < 2) for place, test in enumerate(SQUARES.tests)]
    problem = replace(SQUARES, tests=tests)
    text = fenced("print(int(input()))")
    for which, reward_expected in (("all", 0.5), ("hidden", 0.0), ("public", 1.0)):
        with UnitTestReward(backend="plain", num_workers=1, tests=which) as reward:  # type: ignore[arg-type]
            reward.check_problems([problem])
            [[score]] = reward.score([problem], [[text]])
            assert (score.reward, len(score.verdicts)) == (reward_expected, 4 if which == "all" else 2)
            assert reward.submit_public(problem, text).result().verdicts == ("passed", "passed")
            assert reward.submit(problem, text).result() == score  # neither is taken for the other
    with UnitTestReward(backend="plain", num_workers=1, tests="hidden") as reward:
        no_hidden = replace(problem, tests=tests[:2])
        for ask in (reward.check_problems, lambda problems: reward.submit(problems[0], text)):
            with pytest.raises(ValueError, match="problem 'squares' has no hidden test"):
                ask([no_hidden])
        assert reward.submit_public(no_hidden, text).result().reward == 1.0


@pytest.mark.parametrize(
    "bad",
    [
        {"backend": "docker"},
        {"num_workers": 0},
        {"max_tests": 0},
        {"tests": "secret"},
        {"time_limit_s": 0.0},
        {"time_limit_factor": float("nan")},
        {"memory_limit_mb": 1},
        {"output_limit_bytes": 0},
        {"wall_factor": 0.5},
        {"cache_size": -1},
    ],
)
def test_bad_arguments_name_the_key(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        UnitTestReward(**bad)  # type: ignore[arg-type]


ANY_ORDER = Problem(
    id="any order",
    prompt="Print 1 and n in any order, as a sum.",
    tests=(TestCase(input="2", output="1+2"), TestCase(input="3", output="1+3")),
    checker=(
        "import sys\n"
        "expected, output = (open(name).read().strip() for name in sys.argv[2:4])\n"
        "print(int(sorted(output.split('+')) == sorted(expected.split('+'))))\n"
    ),
)


def behaviours(reward: UnitTestReward, problem: Problem, programs: Sequence[str]) -> list[int | str | None]:
    [scores] = reward.score([problem], [[fenced(program) for program in programs]])
    return [score.behaviour for score in scores]


def test_programs_that_say_the_same_on_all_tests_have_the_same_behaviour(reward: UnitTestReward) -> None:
    square, again, other, first, crash, endless, silent = behaviours(
        reward,
        SQUARES,
        [
            "print(int(input()) ** 2)",
            "n = int(input())\nprint('', n * n, '')",
            "print(-1)",
            "n = int(input())\nprint(n * n if n else -1)",
            "raise ValueError",
            "while True: pass",
            "",
        ],
    )
    assert square == again
    [[none]] = reward.score([SQUARES], [["no program at all"]])
    assert crash == endless == none.behaviour
    assert len({square, other, first, crash, silent}) == 5
    assert all(isinstance(behaviour, str) for behaviour in (square, other, first, crash))
    assert behaviours(reward, replace(SQUARES, id="again"), ["print(-1)  # anew"]) == [other]


def test_right_answers_that_differ_are_told_apart_where_a_checker_accepts_both(reward: UnitTestReward) -> None:
    programs = [
        "print('1+' + input())",
        "n = input()\nprint('1+' + n)",
        "print(input() + '+1')",
        "n = input()\nprint('1+2' if n == '2' else n + '+1')",
    ]
    [scores] = reward.score([ANY_ORDER], [[fenced(program) for program in programs]])
    assert [score.reward for score in scores] == [1.0] * 4
    ascending, same, descending, mixed = (score.behaviour for score in scores)
    assert ascending == same
    assert len({ascending, descending, mixed}) == 3


def test_how_a_number_is_written_is_no_behaviour_where_the_judge_does_not_care(reward: UnitTestReward) -> None:
    """A checker, or a rule, that takes 2.50 for 2.5; words of digits keep their zeros."""
    checker = (
        "import sys\nexpected, output = (float(open(name).read()) for name in sys.argv[2:4])\n"
        "print(int(abs(expected - output) < 1e-3))\n"
    )
    half = Problem(id="half", prompt="", tests=(TestCase(input="5\n", output="2.5\n"),), checker=checker)
    programs = ["print(2.5)", "print('2.50')", "print('+25e-1')", "print('2.5001')", "print('02.5')", "print('2.6')"]
    [scores] = reward.score([half], [[fenced(program) for program in programs]])
    assert [score.reward for score in scores] == [1.0] * 5 + [0.0]
    plain, padded, power, near, zero, wrong = (score.behaviour for score in scores)
    assert plain == padded == power == zero
    assert len({plain, near, wrong}) == 3  # rounding is another behaviour: nobody knows how near is near enough
    wrong_outputs = ["print('9.0')", "print('9')", "print('09')"]
    for compare, num_different in (("tokens", 3), ("tokens_float", 2), ("lines_decimal", 2)):
        problem = replace(half, id=compare, checker=None, compare=compare)  # type: ignore[arg-type]
        assert len(set(behaviours(reward, problem, wrong_outputs))) == num_different


def test_behaviours_are_kept_with_verdicts_and_are_the_same_in_another_process(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backend": "plain", "num_workers": 1, "cache_file": str(tmp_path / "kept.sqlite")}
    programs = ["print(int(input()) ** 2)", "print(4)", "print(5)"]
    found = []
    for cache_size in (4096, 0):
        with UnitTestReward(cache_size=cache_size, **settings) as reward:
            found.append(behaviours(reward, SQUARES, programs))
    with UnitTestReward(backend="plain", num_workers=1) as reward:
        found.append(behaviours(reward, SQUARES, programs))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3
