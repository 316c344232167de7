"""Every source, end to end: the real `datasets` call, and its problems through the real sandbox."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maxk_lightning.data import (
    MBPP,
    CodeContests,
    Codeforces,
    Cure,
    EvalPlus,
    LiveBench,
    LiveCodeBench,
    ProblemSource,
    TestSelection,
)
from maxk_lightning.rewards import UnitTestReward
from tests.support import layouts

SOURCES: dict[str, Callable[[Path], ProblemSource]] = {
    "code_contests": lambda d: CodeContests(layouts.write_code_contests(d), split="all"),
    "livecodebench": lambda d: LiveCodeBench(layouts.write_livecodebench(d), version="release_v2"),
    "livebench": lambda d: LiveBench(layouts.write_livebench(d)),
    "codeforces": lambda d: Codeforces(layouts.write_codeforces(d), overlap=None),
    "mbpp": lambda d: MBPP(layouts.write_mbpp(d)),
    "evalplus": lambda d: EvalPlus(layouts.write_evalplus(d)),
    "cure": lambda d: Cure(layouts.write_cure(d)),
}


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTestReward]:
    with UnitTestReward(num_workers=1) as reward:
        yield reward


@pytest.mark.parametrize("name", SOURCES)
def test_right_programs_get_one_and_wrong_ones_less(name: str, tmp_path: Path, reward: UnitTestReward) -> None:
    problems = SOURCES[name](tmp_path / name).load()
    assert problems
    programs = [[f"```python\n{code}\n```" for code in layouts.SOLUTIONS[problem.id]] for problem in problems]
    for problem, (right, wrong) in zip(problems, reward.score(problems, programs), strict=True):
        assert len(right.verdicts) == len(problem.tests) > 0
        assert right.reward == 1.0, problem.id
        assert wrong.reward is not None
        assert wrong.reward < 1.0, problem.id


@pytest.mark.parametrize(
    ("mode", "codes"),
    [
        (
            "function",
            ("def double(n): return 2*n", "def shift(m, x): return [[v + x for v in r] for r in m]"),
        ),
        (
            "repr",
            (
                "print(2*eval(input()))",
                "m, x = eval(input()), eval(input())\nprint([[v + x for v in r] for r in m])",
            ),
        ),
    ],
)
def test_other_forms_of_mbpp(mode: str, codes: tuple[str, ...], tmp_path: Path, reward: UnitTestReward) -> None:
    problems = MBPP(layouts.write_mbpp(tmp_path / "mbpp"), mode=mode).load()  # type: ignore[arg-type]
    scores = reward.score(problems, [[f"```python\n{code}\n```"] for code in codes])
    assert [score.reward for [score] in scores] == [1.0, 1.0]


def test_a_completion_may_repeat_the_given_beginning(tmp_path: Path, reward: UnitTestReward) -> None:
    [problem] = LiveBench(layouts.write_livebench(tmp_path / "livebench"), tasks=["coding_completion"]).load()
    programs = ["print(a+b)", f"{layouts.PARTIAL}\nprint(a+b)", f"# mine\n{layouts.PARTIAL}\nprint(a+b)"]
    [scores] = reward.score([problem], [[f"```python\n{code}\n```" for code in programs]])
    # The third does not start with the beginning, so it reads its input twice: LiveBench's grader fails it too.
    assert [score.reward for score in scores] == [1.0, 1.0, 0.0]


def test_selected_tests_are_those_that_judge(tmp_path: Path, reward: UnitTestReward) -> None:
    source = CodeContests(layouts.write_code_contests(tmp_path / "cc"), split="all", tests=TestSelection(max_tests=2))
    problem = source.load()[0]
    [[score]] = reward.score([problem], [["```python\nprint(6)\n```"]])
    assert score.verdicts == ("passed", "wrong_answer")
