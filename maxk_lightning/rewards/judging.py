"""Run one program on a prepared problem's tests: standard input and output, function calls, checkers."""

from concurrent.futures import Future

from maxk_lightning.rewards.comparison import is_literal, same_literal, same_output, same_value
from maxk_lightning.rewards.preparation import PreparedProblem, encode
from maxk_lightning.rewards.sandbox.pool import Job, Judge, RunFiles, SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Mode, Outcome
from maxk_lightning.rewards.verdicts import failure_of
from maxk_lightning.types import Problem, Verdict

CHECKER_LIMITS = Limits(cpu_s=10.0, wall_s=100.0, memory_bytes=1 << 30, output_bytes=1 << 16)
CHECKER_APPROVALS = (b"1", b"100")
"What a checker prints for a right answer; anything else is wrong (open-r1's convention for its Codeforces set)."
Verdicts = tuple[Verdict, ...]


def judge_program(
    pool: SandboxPool, prepared: PreparedProblem, program: bytes, max_limit_hits: int
) -> "Future[Verdicts]":
    """Start a program on all selected tests; the future gets one verdict per test."""
    if prepared.problem.checker is not None:
        return _Checking(pool, prepared, program, max_limit_hits).verdicts

    def judge(index: int, outcome: Outcome, output: bytes) -> Verdict:
        failure = failure_of(outcome, len(output), prepared.limits.output_bytes)
        if failure is not None:
            return failure
        is_right = is_right_answer(prepared.problem, output, prepared.expected[index])
        return "passed" if is_right else "wrong_answer"

    return pool.submit(_program_job(prepared, program, judge, max_limit_hits))


def is_right_answer(problem: Problem, output: bytes, expected: bytes) -> bool:
    """Whether an output, or the text of a returned value, is the expected one by the problem's rule."""
    if problem.values == "python":
        return same_literal(output, expected, problem.atol)
    if problem.function is None:
        return same_output(output, expected, problem.compare)
    return same_value(output, expected)


def mode_of(problem: Problem) -> Mode:
    """How the sandbox runs the programs of a problem."""
    if problem.function is None:
        return "program" if problem.header is None else "headed_program"
    if problem.values == "python":
        return "literal_call"
    return "call" if problem.header is None else "headed_call"


def _program_job(prepared: PreparedProblem, program: bytes, judge: Judge, max_limit_hits: int) -> Job:
    return Job(
        source=program,
        runs=[RunFiles(stdin=stdin) for stdin in prepared.inputs],
        judge=judge,
        limits=prepared.limits,
        mode=mode_of(prepared.problem),
        function=prepared.problem.function or "",
        max_limit_hits=max_limit_hits,
    )


class _Checking:
    """Two jobs in a row: the program, then the checker on the outputs of runs that ended well."""

    def __init__(self, pool: SandboxPool, prepared: PreparedProblem, program: bytes, max_limit_hits: int) -> None:
        self.verdicts: Future[Verdicts] = Future()
        self._pool = pool
        self._prepared = prepared
        self._outputs: dict[int, bytes] = {}
        job = _program_job(prepared, program, self._keep_output, max_limit_hits)
        pool.submit(job).add_done_callback(self._start_checker)

    def _keep_output(self, index: int, outcome: Outcome, output: bytes) -> Verdict:
        failure = failure_of(outcome, len(output), self._prepared.limits.output_bytes)
        if failure is None and self._prepared.problem.values == "python" and not is_literal(output):
            failure = "wrong_answer"  # a checker may evaluate it
        if failure is None:
            self._outputs[index] = output
        return failure or "wrong_answer"  # until the checker approves

    def _start_checker(self, run: "Future[Verdicts]") -> None:
        error = run.exception()
        if error is not None:
            self.verdicts.set_exception(error)
            return
        if not self._outputs:
            self.verdicts.set_result(run.result())
            return
        prepared = self._prepared
        job = Job(
            source=encode(prepared.problem.checker or ""),
            runs=[
                RunFiles(stdin=prepared.inputs[index], expected=prepared.expected[index], output=output)
                for index, output in self._outputs.items()
            ],
            judge=_checker_verdict,
            limits=CHECKER_LIMITS,
            mode="checker",
        )
        try:
            checked = self._pool.submit(job)
        except RuntimeError as closed:
            self.verdicts.set_exception(closed)
            return
        checked.add_done_callback(lambda answer: self._finish(list(run.result()), answer))

    def _finish(self, verdicts: list[Verdict], checked: "Future[Verdicts]") -> None:
        error = checked.exception()
        if error is not None:
            self.verdicts.set_exception(error)
            return
        for index, verdict in zip(self._outputs, checked.result(), strict=True):
            verdicts[index] = verdict
        self.verdicts.set_result(tuple(verdicts))


def _checker_verdict(_: int, outcome: Outcome, output: bytes) -> Verdict:
    if outcome.kind == "internal":
        return "infra_error"
    has_ended = outcome.kind == "exited" and outcome.status == 0
    return "passed" if has_ended and b"".join(output.split()) in CHECKER_APPROVALS else "wrong_answer"
