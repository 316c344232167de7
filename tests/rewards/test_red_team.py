"""What programs and settings may try on the reward as a whole; single programs are in the catalogue."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from maxk_lightning.commands.score import ScoreTotals
from maxk_lightning.rewards import UnitTestReward, unit_tests
from maxk_lightning.rewards.judging import judge_program
from maxk_lightning.rewards.preparation import prepare
from maxk_lightning.rewards.sandbox.jobs import Job, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome
from maxk_lightning.rewards.sandbox.worker import PACKAGE, WorkerSettings
from maxk_lightning.rewards.verdicts import RULES_VERSION
from maxk_lightning.types import Problem, Score, TestCase, Verdict
from tests.rewards.test_robustness import children_of

LIMITS = Limits(cpu_s=0.5, wall_s=30.0, memory_bytes=1 << 30, output_bytes=8 << 20)
BEHAVIOUR = "0123456789abcdef"
"Stands for the one of a kept row."
SQUARE = "```\nprint(int(input()) ** 2)\n```"


def squares(num_tests: int = 1, **settings: object) -> Problem:
    tests = tuple(TestCase(input=f"{n}\n", output=f"{n * n}\n") for n in range(num_tests))
    return Problem(id="s", prompt="p", tests=tests, **settings)  # type: ignore[arg-type]


@pytest.fixture
def pool() -> Iterator[SandboxPool]:
    pool = SandboxPool(WorkerSettings(backend="plain"), num_workers=1)
    yield pool
    pool.close()


def score_while_killing(victims: Callable[[int], list[int]]) -> tuple[Score, int]:
    """Score a program that sleeps, killing what `victims` finds below the worker; also how often."""
    num_killed, killed = 0, set()
    with UnitTestReward(backend="plain", num_workers=1, wall_factor=100.0) as reward:
        others = set(children_of(os.getpid()))
        future = reward.submit(squares(), "```\nimport time\ntime.sleep(60)\n```")
        while not future.done():
            time.sleep(0.02)
            for worker in set(children_of(os.getpid())) - others:
                for pid in victims(worker):
                    if pid not in killed and children_of(worker):  # it has begun
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
                        num_killed += 1
        return future.result(), num_killed


def test_what_is_killed_at_every_attempt_has_failed() -> None:
    score, num_killed = score_while_killing(children_of)
    assert replace(score, behaviour=None) == Score(reward=0.0, verdicts=("memory_limit",))
    assert num_killed == 5


def test_a_worker_lost_at_every_attempt_is_a_missing_reward_with_its_cause() -> None:
    score, num_killed = score_while_killing(lambda worker: [worker])
    assert score == Score(reward=None, verdicts=("infra_error",), missing_cause="worker_lost")
    assert num_killed == 5


def test_score_counts_missing_rewards_by_cause(capsys: pytest.CaptureFixture[str]) -> None:
    totals = ScoreTotals()
    lost = Score(reward=None, verdicts=("infra_error",), missing_cause="worker_lost")
    totals.add([Score(reward=0.5, verdicts=("passed", "wrong_answer")), lost, lost])
    totals.show("plain", Path("out"), [])
    printed = capsys.readouterr().out
    assert "3 completions, mean reward 0.5000" in printed
    assert "2 completions without a reward, by cause: {'worker_lost': 2}" in printed


def plain_job(**settings: object) -> Job:
    changed = {"source": b"print(7)", "judge": lambda *run: run, "limits": LIMITS, **settings}
    return Job(runs=[RunFiles(stdin=b"")], **changed)  # type: ignore[arg-type]


def raising(*_: object) -> None:
    raise LookupError("what nobody expected")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"judge": raising}, "LookupError: what nobody expected"),
        ({"limits": Limits(cpu_s=1.0, wall_s=1.0, memory_bytes=-1, output_bytes=1)}, "error: "),
        ({"function": 7}, "AttributeError: "),
    ],
)
def test_the_unexpected_fails_its_job_alone(pool: SandboxPool, bad: dict[str, object], error: str) -> None:
    failed = pool.submit(plain_job(**bad))
    with pytest.raises(RuntimeError, match=f"a program could not be judged, which is a bug in the sandbox \\({error}"):
        failed.result(30)
    [[_, outcome, output]] = pool.submit(plain_job()).result(30)
    assert (outcome.kind, output) == ("exited", b"7\n")


class StumblingPool(SandboxPool):
    """Fails once in its own work, while a program runs, when the test says so."""

    is_to_stumble = False

    @property
    def is_busy(self) -> bool:
        """Whether a program runs."""
        return any(self._workers.values())

    def _replace_hung_workers(self) -> None:
        if self.is_busy and self.is_to_stumble:
            self.is_to_stumble = False
            raise LookupError("what nobody expected")
        super()._replace_hung_workers()


def test_the_pool_lives_on_when_its_own_work_fails() -> None:
    pool = StumblingPool(WorkerSettings(backend="plain"), num_workers=1)
    running = pool.submit(plain_job(source=b"import time; time.sleep(60)"))
    while not pool.is_busy:
        time.sleep(0.01)
    pool.is_to_stumble = True
    waiting = pool.submit(plain_job())  # wakes the pool's thread
    for failed in (running, waiting):
        assert "LookupError: what nobody expected" in str(failed.exception(30))
    [[_, outcome, _]] = pool.submit(plain_job()).result(30)
    assert outcome.kind == "exited"
    pool.close()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_time_limits": 300}, {}),
        ({"max_time_limits": 1 << 40}, {}),
        ({"output_limit_bytes": 1 << 63}, {}),
        ({"output_limit_bytes": 1 << 64}, {}),
        ({"memory_limit_mb": 10**15}, {}),
        ({"time_limit_s": 1e308, "time_limit_factor": 1e308}, {}),
        ({"wall_factor": float("inf")}, {}),
        ({}, {"memory_limit_mb": 9 * 10**12}),
        ({}, {"memory_limit_mb": 10**300}),
        ({}, {"time_limit_s": 1e300}),
        ({}, {"time_limit_s": 1e10}),
    ],
)
def test_limits_that_no_machine_reaches_are_none(settings: dict[str, float], problem: dict[str, object]) -> None:
    with UnitTestReward(backend="plain", num_workers=1, **settings) as reward:  # type: ignore[arg-type]
        [[score]] = reward.score([squares(**problem)], [[SQUARE]])  # type: ignore[arg-type]
    assert score.reward == 1.0


def test_a_long_name_of_a_function_is_called_whole() -> None:
    name = "f" * 5000
    problem = Problem(id="f", prompt="p", tests=(TestCase(input="7", output="49"),), function=name)
    with UnitTestReward(backend="plain", num_workers=1) as reward:
        [[score]] = reward.score([problem], [[f"```\ndef {name}(n): return n * n\n```"]])
    assert score.reward == 1.0


@pytest.mark.parametrize(
    "change",
    [
        "''", "NULL", "x'00ff'", "7", f"'{BEHAVIOUR}'", f"'passed {BEHAVIOUR}'", f"'passed fine {BEHAVIOUR}'",
        f"'passed passed passed {BEHAVIOUR}'", "'passed passed'", "'passed passed 0123'",
    ],
)  # fmt: skip
def test_damaged_rows_are_unknown(tmp_path: Path, change: str) -> None:
    file = tmp_path / "verdicts.sqlite"

    def reward_of_square() -> float | None:
        with UnitTestReward(backend="plain", num_workers=1, cache_file=str(file)) as reward:
            return reward.submit(squares(2), SQUARE).result(30).reward

    assert reward_of_square() == 1.0
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE verdicts SET verdicts = 'wrong_answer passed " + BEHAVIOUR + "'")
    assert reward_of_square() == 0.5  # the file is read
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE verdicts SET verdicts = {change}")
    assert reward_of_square() == 1.0


def test_verdicts_by_other_rules_are_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "verdicts.sqlite"
    with UnitTestReward(backend="plain", num_workers=1, cache_file=str(file)) as reward:
        reward.submit(squares(), SQUARE).result(30)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE verdicts SET verdicts = 'wrong_answer " + BEHAVIOUR + "'")
    for version, expected in ((RULES_VERSION, 0.0), (RULES_VERSION + 1, 1.0)):
        monkeypatch.setattr(unit_tests, "RULES_VERSION", version)
        with UnitTestReward(backend="plain", num_workers=1, cache_file=str(file)) as reward:
            assert reward.submit(squares(), SQUARE).result(30).reward == expected


def test_a_verdict_file_that_breaks_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with UnitTestReward(backend="plain", num_workers=1, cache_file=str(tmp_path / "x")) as reward:
        assert reward.submit(squares(), SQUARE).result(30).reward == 1.0
        with sqlite3.connect(tmp_path / "x") as connection:
            connection.execute("DROP TABLE verdicts")
        for i in range(3):
            assert reward.submit(squares(), SQUARE.replace("print", f"# {i}\nprint")).result(30).reward == 1.0
    assert [record.levelname for record in caplog.records if "cache_file" in record.message] == ["WARNING"]


class CountingPool(SandboxPool):
    """Keeps how every run ended."""

    def submit(self, job: Job, *, is_next: bool = False) -> "Future[tuple[object, ...]]":
        judge = job.judge

        def listen(index: int, outcome: Outcome, output: bytes) -> object:
            self.outcomes.append((job.mode, outcome))
            return judge(index, outcome, output)

        job.judge = listen
        return super().submit(job, is_next=is_next)

    @property
    def outcomes(self) -> list[tuple[str, Outcome]]:
        return self.__dict__.setdefault("_outcomes", [])  # type: ignore[no-any-return]


EVEN = "import sys\nprint(1 if int(open(sys.argv[3]).read()) % 2 == 0 else 0)"


def judged_by_checker(program: str, checker: str, num_tests: int) -> tuple[list[Verdict], list[tuple[str, Outcome]]]:
    """Verdicts, and how the runs ended that took place."""
    problem = squares(num_tests, checker=checker)
    pool = CountingPool(WorkerSettings(backend="plain"), num_workers=1)
    judged = judge_program(pool, prepare(problem, problem.tests, LIMITS), program.encode(), max_limit_hits=2)
    verdicts = list(judged.result(120).verdicts)
    pool.close()
    return verdicts, [(mode, outcome) for mode, outcome in pool.outcomes if outcome.wall_s]


def test_checkers_see_every_output_in_order() -> None:
    verdicts, outcomes = judged_by_checker("print(int(input()))", EVEN, num_tests=70)
    assert verdicts == ["passed", "wrong_answer"] * 35
    modes = "".join(mode[0] for mode, _ in outcomes)
    assert modes == "p" * 32 + "c" * 32 + "p" * 32 + "c" * 32 + "p" * 6 + "c" * 6  # few outputs are held


def test_limits_count_over_all_slices() -> None:
    program = "n = int(input())\nwhile n > 30: pass\nprint(n)"
    verdicts, outcomes = judged_by_checker(program, EVEN, num_tests=70)
    assert verdicts == [*["passed", "wrong_answer"] * 15, "passed", *["time_limit"] * 39]
    assert sum(outcome.kind == "cpu_limit" for _, outcome in outcomes) == 2


@pytest.mark.slow
def test_checkers_that_hang_count_as_limits() -> None:
    verdicts, outcomes = judged_by_checker("print(1)", "while True: pass", num_tests=40)
    assert verdicts == ["wrong_answer"] * 40
    assert [mode for mode, outcome in outcomes if outcome.kind == "cpu_limit"] == ["checker"] * 2


PEAK = """
import resource
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Problem, TestCase
tests = tuple(TestCase(input=str(i), output="1") for i in range(11))
problem = Problem(id="c", prompt="p", tests=tests, checker="print(1)")
with UnitTestReward(backend="plain", num_workers=2) as reward:
    reward.score([problem], [["```\\nprint(1)\\n```"]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [scores] = reward.score([problem], [[f"```\\nprint('y' * 8380000) # {i}\\n```" for i in range(6)]])
    assert {score.reward for score in scores} == {0.0}
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_outputs_for_checkers_do_not_pile_up() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64, "MiB; 528 were printed"


WALK = """
import sys
frame, seen = sys._getframe(), [sys.orig_argv, sys.argv, sys.path, list(sys.path_importer_cache)]
while frame:
    seen.append((frame.f_code.co_filename, [str(value) for value in frame.f_globals.values()]))
    seen += [str(value) for value in frame.f_locals.values()]
    frame = frame.f_back
print(seen)
"""


@pytest.mark.parametrize("backend", ["plain", "bwrap"])
def test_nothing_tells_where_the_package_lies(backend: str) -> None:
    pool = SandboxPool(WorkerSettings(backend=backend), num_workers=1)  # type: ignore[arg-type]
    job = Job(source=WALK.encode(), runs=[RunFiles(stdin=b"")], judge=lambda *run: run, limits=LIMITS)
    [[_, outcome, output]] = pool.submit(job).result(30)
    pool.close()
    if outcome.kind == "internal":
        pytest.skip(f"backend {backend} does not work here")
    assert (outcome.status, str(PACKAGE).encode() in output, len(output) > 1000) == (0, False, True)
