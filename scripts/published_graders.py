"""The graders that published problem sets come with, run outside the sandbox: the oracle of check_published.py.

Started as a process of its own: reads a JSON line `{"programs": [...], "preamble": ..., "check": ..., "limit_s": ...}`,
runs each program with the check in a fork, and answers a JSON list of `pass`, `fail` and `time`.

A check is what the benchmark publishes: HumanEval's `check(candidate)` (openai/human-eval, human_eval/execution.py,
runs prompt + completion + test + `check(entry_point)`), the `test` of an EvalPlus row (needs numpy), MBPP's assertions
(google-research, mbpp). Programs act with your rights: give it published programs only.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence

MEMORY_BYTES = 4 << 30  # as EvalPlus


def grade(programs: Sequence[str], check: str, *, limit_s: int = 120) -> list[str]:
    """Whether each program passes the check, by the benchmark's own code in another process."""
    job = json.dumps({"programs": programs, "check": check, "limit_s": limit_s})
    command = [sys.executable, os.path.abspath(__file__)]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True)
    verdicts: list[str] = json.loads(done.stdout)
    return verdicts


def run_program(program: str, given: str, *, limit_s: float) -> tuple[str, str]:
    """How a program on standard input ends outside the sandbox (`ok`, `error`, `time`), and what it prints."""
    try:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return "time", ""
    return ("error" if done.returncode else "ok"), done.stdout.decode("utf-8", "replace")


def _main() -> None:
    job = json.loads(sys.stdin.read())
    if "numpy" in job["check"]:
        import numpy  # noqa: F401  (once, before the forks)
    print(json.dumps([_run(program, job["check"], job["limit_s"]) for program in job["programs"]]))


def _run(program: str, check: str, limit_s: int) -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(_graded(program, check, limit_s))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "time" if os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU) else "fail"
    return "fail" if os.WEXITSTATUS(status) else "pass"


def _graded(program: str, check: str, limit_s: int) -> int:
    signal.alarm(limit_s)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    names: dict[str, object] = {"__name__": "graded"}
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(program, names)
            exec(check, names)
    except BaseException:  # noqa: BLE001 - whatever a program raises is its failure
        return 1
    return 0


if __name__ == "__main__":
    _main()
