"""Selectors that run programs: public tests, agreement of behaviour, and candidates that try to be chosen."""

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.comparison import behaviour_of
from maxk_lightning.selection import Agreement, Candidate, Choice, DualAgreement, PublicTests, Selector, Then, choose
from maxk_lightning.selection.inputs import more_inputs
from maxk_lightning.types import Problem, TestCase

SUM = Problem(
    id="sum",
    prompt="Print the sum of two integers.",
    tests=(TestCase(input="1 2\n", output="3\n", is_public=True), TestCase(input="5 6\n", output="11\n")),
)
RIGHT = "print(sum(map(int, input().split())))"
OTHER_RIGHT = "a, b = map(int, input().split())\nprint(a + b)"
CONSTANT = "print(3)"
MAXIMUM = "print(max(map(int, input().split())) + 1)"
CRASH = "raise ValueError"


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTestReward]:
    with UnitTestReward(time_limit_s=2.0, output_limit_bytes=1 << 16) as reward:
        yield reward


def _chosen(
    reward: UnitTestReward, programs: Sequence[str], problem: Problem = SUM, order: str = "public+agreement"
) -> tuple[str, Choice]:
    of_word: dict[str, Selector] = {
        "public": PublicTests(reward),
        "agreement": Agreement(reward, num_inputs=16),
        "codet": DualAgreement(reward, num_inputs=16),
    }
    candidates = [Candidate(text=f"```python\n{program}\n```") for program in programs]
    (seen,) = Then([of_word[word] for word in order.split("+")]).observe([problem], [candidates])
    choice = choose(seen)
    return programs[choice.index], choice


def test_agreement_tells_what_public_tests_cannot(reward: UnitTestReward) -> None:
    """All but one pass the public test; two of them agree with each other, on inputs that nobody gave."""
    program, choice = _chosen(reward, [CONSTANT, MAXIMUM, RIGHT, CRASH, OTHER_RIGHT])
    assert program == RIGHT
    assert choice.how == "first sampled"  # tied with the other right one
    assert choice.confidence == pytest.approx(2 / 5)


def test_public_tests_come_first(reward: UnitTestReward) -> None:
    program, choice = _chosen(reward, [CRASH, CRASH + " ", "print(0)", "print(0)", "print(0)", RIGHT])
    assert (program, choice.how) == (RIGHT, "public")


@pytest.mark.parametrize("order", ["public+agreement", "codet"])
@pytest.mark.parametrize(
    ("programs", "problem", "expected"),
    [
        ([CRASH], SUM, CRASH),
        ([CRASH, CRASH], SUM, CRASH),
        (["not python (", RIGHT], SUM, RIGHT),
        ([CONSTANT, RIGHT, OTHER_RIGHT], Problem(id="no public", prompt="", tests=SUM.tests[1:]), CONSTANT),
        ([CONSTANT, RIGHT], Problem(id="no tests", prompt=""), CONSTANT),
        (  # the public test is wrong: nobody passes, and agreement decides
            [CONSTANT, RIGHT, OTHER_RIGHT],
            Problem(id="wrong", prompt="", tests=(TestCase(input="1 2\n", output="4\n", is_public=True),)),
            RIGHT,
        ),
    ],
    ids=["one that fails", "all fail", "one is no program", "no public test", "no test", "a wrong public test"],
)
def test_edges_are_defined(
    reward: UnitTestReward, programs: list[str], problem: Problem, expected: str, order: str
) -> None:
    program, choice = _chosen(reward, programs, problem, order)
    assert program == expected
    assert choice.confidence is None or 0 < choice.confidence <= 1


def test_answers_without_a_program_are_never_preferred(reward: UnitTestReward) -> None:
    (seen,) = Then([PublicTests(reward), Agreement(reward)]).observe(
        [SUM],
        [[Candidate(text="I do not know."), Candidate(text="I do not know."), Candidate(text=f"```\n{RIGHT}\n```")]],
    )
    assert choose(seen).index == 2


ATTACKS = {
    "reads what others wrote": """
import glob
for name in glob.glob('/tmp/*') + glob.glob('/proc/*/cmdline'):
    print(open(name).read())""",
    "floods": "while True: print('3' * 10**6)",
    "leaves a file for its copies": """
import os
print(3 if os.path.exists('/tmp/seen') else 4)
for directory in ('/tmp', '/dev/shm', '.'):
    try:
        open(directory + '/seen', 'a').write('x')
    except OSError:
        pass""",
    "sleeps": "import time\ntime.sleep(100)",
    "forks": "import os\nwhile True: os.fork()",
    "other answers every time": "import os\nprint(3 if input() == '1 2' else os.urandom(9).hex())",
    "computes for the public input only": "assert input() == '1 2'\nprint(3)",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["public+agreement", "codet"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_not_chosen(attack: str, order: str, reward: UnitTestReward) -> None:
    """Though it has the majority: it gains nothing by what it reads, writes or prints."""
    program, _ = _chosen(reward, [ATTACKS[attack]] * 3 + [RIGHT, OTHER_RIGHT], order=order)
    assert program in (RIGHT, OTHER_RIGHT)


CALLS = {
    "json": Problem(
        id="call", prompt="", function="f", tests=(TestCase(input='[3, 1]\n"ab"\n', output="[1, 3]", is_public=True),)
    ),
    "python": Problem(
        id="call", prompt="", function="f", values="python",
        tests=(TestCase(input="(3, 1)\n{'a': {2}}\n", output="[1, 3]", is_public=True),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("values", CALLS)
def test_calls_get_arguments_of_the_same_types(values: str, reward: UnitTestReward) -> None:
    problem = CALLS[values]
    inputs = more_inputs(problem, 24)
    assert len(inputs) == len(set(inputs)) == 24
    assert inputs[0] == problem.tests[0].input
    read = json.loads if values == "json" else ast.literal_eval
    types = {tuple(type(read(line)) for line in text.split("\n") if line) for text in inputs}
    assert types == {(list, str)} if values == "json" else {(tuple, dict)}
    right, wrong = "def f(a, b):\n    return sorted(a)", "def f(a, b):\n    return [1, 3]"
    assert _chosen(reward, [wrong, right, right.replace("sorted(a)", "sorted(list(a))")], problem)[0] == right


def test_mutated_inputs_look_like_public_ones() -> None:
    problem = Problem(id="a", prompt="", tests=(TestCase(input="3\n10 20 30\nabc\n", output="", is_public=True),))
    inputs = more_inputs(problem, 40, seed=1)
    assert inputs == more_inputs(problem, 40, seed=1) != more_inputs(problem, 40, seed=2)
    assert all(len(text.split("\n")) == 4 and text.endswith("\nabc\n") for text in inputs)
    assert all("-" not in text for text in inputs)  # none had a sign
    words = Problem(id="a", prompt="", tests=(TestCase(input="hello world\n", output="", is_public=True),))
    assert len(more_inputs(words, 20)) == 20
    empty = Problem(id="a", prompt="", tests=(TestCase(input="", output="", is_public=True),))
    assert more_inputs(empty, 20) == [""]


@pytest.mark.parametrize(
    ("first", "second", "is_value", "is_literal", "are_equal"),
    [
        (b"1 2\n", b"1  2", False, False, True),
        (b"1 2", b"12", False, False, False),
        (b'{"a": 1, "b": [2]}', b'{"b": [2.0], "a": true}', True, False, True),
        (b"[1, 2]", b"[2, 1]", True, False, False),
        (b"{3, 1}", b"{1, 3}", True, True, True),
        (b"(1, 2)", b"[1, 2]", True, True, False),
        (b"nan", b"nan", True, True, True),
        (b"[" * 5000, b"[" * 5000, True, False, True),
        (b"\xff", b"\xff ", True, True, True),
    ],
)
def test_outputs_that_say_the_same(
    first: bytes, second: bytes, is_value: bool, is_literal: bool, are_equal: bool
) -> None:
    said = [behaviour_of(output, is_value=is_value, is_literal=is_literal) for output in (first, second)]
    assert (said[0] == said[1]) == are_equal


def test_a_behaviour_is_told_input_by_input(reward: UnitTestReward, tmp_path: Path) -> None:
    program = "n = int(input())\nprint(n // (n - 2))"
    behaviour = reward.behaviour(SUM, f"```python\n{program}\n```", ["3\n", "2\n", "x\n", "3 \n"]).result()
    assert [digest is None for digest in behaviour] == [False, True, True, False]
    assert behaviour[0] == behaviour[3]
    assert reward.behaviour(SUM, "no program", ["3\n"]).result() == (None,)
    assert reward.behaviour(SUM, f"```python\n{program}\n```", []).result() == ()
