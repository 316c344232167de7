"""Workers, tests and owners that are killed; many threads; closing; caching."""

import contextlib
import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Problem, TestCase

SQUARES = Problem(
    id="squares",
    prompt="Print the square of n.",
    tests=tuple(TestCase(input=f"{n}\n", output=f"{n * n}\n") for n in range(4)),
)
SLOW = "import time; time.sleep(0.05)\nprint(int(input()) ** 2)"


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], patience_s: float = 10.0) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "test"])
def test_kill_9_loses_no_verdict(victim: str) -> None:
    """Kill a random worker, or the test that it runs, every few milliseconds while 40 programs are scored."""
    before = set(children_of(os.getpid()))
    with UnitTestReward(backend="plain", num_workers=2) as reward:
        futures = [reward.submit(SQUARES, fenced(f"# {i}\n{SLOW}")) for i in range(40)]
        generator = random.Random(0)
        num_killed = 0
        while num_killed < 8 and not all(future.done() for future in futures):
            time.sleep(0.3)
            workers = [pid for pid in children_of(os.getpid()) if pid not in before]
            targets = workers if victim == "worker" else [pid for worker in workers for pid in children_of(worker)]
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(generator.choice(targets), signal.SIGKILL)
                num_killed += 1
        assert num_killed >= 3
        assert [future.result(60).reward for future in futures] == [1.0] * 40


def test_close_leaves_no_process_and_a_later_use_starts_again() -> None:
    before = set(children_of(os.getpid()))
    num_fds = len(os.listdir("/proc/self/fd"))
    reward = UnitTestReward(backend="plain", num_workers=2)
    for code in (SLOW, f"{SLOW}\n"):
        assert reward.submit(SQUARES, fenced(code)).result().reward == 1.0
        reward.close()
        reward.close()
        assert set(children_of(os.getpid())) <= before
        assert len(os.listdir("/proc/self/fd")) == num_fds


def test_closing_answers_what_was_waiting() -> None:
    reward = UnitTestReward(backend="plain", num_workers=1)
    futures = [reward.submit(SQUARES, fenced(f"# {i}\n{SLOW}")) for i in range(20)]
    reward.close()
    for future in futures:
        assert isinstance(future.exception(10), RuntimeError | None)


OWNER = """
import sys, time
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Problem, TestCase
problem = Problem(id="p", prompt="p", tests=(TestCase(input="2", output="4"),))
reward = UnitTestReward(backend=sys.argv[1], num_workers=3)
reward.submit(problem, "```\\nprint(4)\\n```").result()
for i in range(2):
    reward.submit(problem, f"```\\n{i}\\nimport time\\nwhile True: time.sleep(1)\\n```")
import os
if os.fork() == 0:
    time.sleep(8)  # holds the owner's ends of all sockets, as a forked data loader does
    os._exit(0)
print("running", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("backend", ["plain", "bwrap"])
def test_nothing_survives_a_killed_owner(backend: str) -> None:
    """Also with a sibling that inherited all of the owner's descriptors, as forked data loaders do."""
    command = [sys.executable, "-c", OWNER, backend]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    if owner.stdout.readline() != "running\n":
        pytest.skip(f"backend {backend} does not work here")

    def tree() -> list[int]:
        found, frontier = [], [owner.pid]
        while frontier:
            frontier = [child for pid in frontier for child in children_of(pid)]
            found += frontier
        return found

    assert wait_until(lambda: len(tree()) >= 6)  # three workers (one idle), two programs, a fork
    processes = [pid for pid in tree() if b"-c\0\nimport sys, time" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(processes) >= 5
    owner.kill()
    owner.wait()
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), patience_s=4.0)
    owner.stdout.close()


def test_identical_programs_run_once_and_results_are_cached() -> None:
    counting = "import os; print(os.getpid())"
    same = Problem(id="pid", prompt="p", tests=(TestCase(input="", output="0"),))
    with UnitTestReward(backend="plain", num_workers=2, time_limit_s=0.5) as reward:
        start = time.monotonic()
        [scores] = reward.score([same], [[fenced("while True: pass")] * 64])
        assert time.monotonic() - start < 10.0  # 64 runs would take 16 s of two cores
        assert {score.verdicts for score in scores} == {("time_limit",)}
        start = time.monotonic()
        reward.score([same], [[fenced("while True: pass")] * 64])
        assert time.monotonic() - start < 0.5
        [[score]] = reward.score([same], [[fenced(counting)]])
        assert score.reward == 0.0


def test_cache_distinguishes_tests_and_limits() -> None:
    other = Problem(id="squares", prompt="same id, other tests", tests=(TestCase(input="2\n", output="5\n"),))
    code = fenced("print(int(input()) ** 2)")
    with UnitTestReward(backend="plain", num_workers=1) as reward:
        [[first], [second]] = reward.score([SQUARES, other], [[code], [code]])
    assert (first.reward, second.reward) == (1.0, 0.0)


def test_many_threads_share_one_reward() -> None:
    answers: dict[int, list[float | None]] = {}
    with UnitTestReward(backend="plain", num_workers=2) as reward:

        def use(thread: int) -> None:
            codes = [fenced(f"# {thread}\nprint(int(input()) ** {1 + i % 2})") for i in range(10)]
            answers[thread] = [score.reward for score in reward.score([SQUARES], [codes])[0]]

        threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(answers.values()) == [[0.5, 1.0] * 5] * 8


def test_long_inputs_many_tests_and_early_stop() -> None:
    """70 tests go out in three requests; after two time limits the rest is not run but counts."""
    tests = tuple(TestCase(input=f"{n}\n" + "x" * 100_000, output=str(n)) for n in range(70))
    problem = Problem(id="many", prompt="p", tests=tests, time_limit_s=0.2)
    codes = ["print(input())", "n = int(input())\nprint(n)\nwhile n > 39: pass"]
    with UnitTestReward(backend="plain", num_workers=2) as reward:
        start = time.monotonic()
        [scores] = reward.score([problem], [[fenced(code) for code in codes]])
        assert time.monotonic() - start < 10.0
    assert scores[0].reward == 1.0
    assert scores[1].verdicts == ("passed",) * 40 + ("time_limit",) * 30
    assert scores[1].reward == pytest.approx(40 / 70)


def test_more_workers_than_descriptors_allow() -> None:
    """A low limit of open files slows the pool down, it fails no program."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Problem, TestCase
tests = tuple(TestCase(input=f"{n}", output=f"{n}") for n in range(20))
with UnitTestReward(backend="plain", num_workers=4) as reward:
    codes = [f"```\\n# {i}\\nprint(input())\\n```" for i in range(12)]
    [scores] = reward.score([Problem(id="p", prompt="p", tests=tests)], [codes])
print([score.reward for score in scores] == [1.0] * 12)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_copies_carry_the_settings() -> None:
    with UnitTestReward(backend="plain", num_workers=1, max_tests=2) as reward:
        reward.score([SQUARES], [[fenced("print(0)")]])
        twin = pickle.loads(pickle.dumps(copy.deepcopy(reward)))
    with twin:
        [[score]] = twin.score([SQUARES], [[fenced("print(0)")]])
    assert score.verdicts == ("passed", "wrong_answer")
