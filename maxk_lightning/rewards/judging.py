"""Run one program on a prepared problem's tests: standard input and output, function calls, checkers."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from maxk_lightning.rewards.comparison import behaviour_of, is_literal, same_literal, same_output, same_value
from maxk_lightning.rewards.futures import then
from maxk_lightning.rewards.preparation import PreparedProblem, encode
from maxk_lightning.rewards.sandbox.jobs import Job, Judge, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import MAX_RUNS_PER_REQUEST, Limits, Mode, Outcome
from maxk_lightning.rewards.verdicts import Judgement, behaviour_on, failure_of, is_constant_on
from maxk_lightning.types import MissingCause, Problem, Verdict

CHECKER_LIMITS = Limits(cpu_s=10.0, wall_s=100.0, memory_bytes=1 << 30, output_bytes=1 << 16)
CHECKER_APPROVALS = (b"1", b"100")
"What a checker prints for a right answer; anything else is wrong (open-r1's convention for its Codeforces set)."
MAX_REPLY_BYTES, MAX_REPLY_FACTOR = 64 << 10, 16
"A call's result is looked at up to so many bytes and so many times the expected one: parsing it takes time and memory."
DIGEST_BYTES = 16
"Of what a program said; enough that no two outputs share one."
MAX_CHECKED_BYTES, MAX_CHECKED_FACTOR = 2 << 20, 4
"An output goes to a checker up to so many bytes and so many times the expected one: it is kept until then."


def judge_program(
    pool: SandboxPool, prepared: PreparedProblem, program: bytes, max_limit_hits: int
) -> "Future[Judgement]":
    """Start a program on all selected tests."""
    if prepared.problem.checker is not None:
        return _Checking(pool, prepared, program, max_limit_hits).judgement
    problem = prepared.problem
    is_value = problem.function is not None or problem.values == "python"
    said: dict[int, bytes] = {}

    def judge(index: int, outcome: Outcome, output: bytes) -> Verdict:
        said.pop(index, None)  # of an attempt that the sandbox failed
        failure = failure_of(outcome, len(output), prepared.limits.output_bytes)
        if failure is not None:
            return failure
        expected = prepared.expected[index]
        if is_value and len(output) > MAX_REPLY_BYTES + MAX_REPLY_FACTOR * len(expected):
            return "wrong_answer"
        is_right = is_right_answer(problem, output, expected)
        said[index] = _what(problem, expected if is_right else output)  # right in whatever form: one behaviour
        return "passed" if is_right else "wrong_answer"

    def judgement(verdicts: tuple[Verdict, ...]) -> Judgement:
        return _judgement(verdicts, job.missing_cause, said)

    job = _program_job(prepared, program, prepared.inputs, judge, max_limit_hits)
    return then(pool.submit(job), judgement)


def run_program(
    pool: SandboxPool, prepared: PreparedProblem, program: bytes, inputs: Sequence[bytes], max_limit_hits: int
) -> "Future[tuple[bytes | None, ...]]":
    """Start a program on inputs whose outputs nobody knows: a digest of what it said on each, None where it failed."""
    problem = prepared.problem

    def digest(_: int, outcome: Outcome, output: bytes) -> bytes | None:
        if failure_of(outcome, len(output), prepared.limits.output_bytes) is not None or len(output) > MAX_REPLY_BYTES:
            return None
        return _what(problem, output)

    job = Job(
        source=program,
        runs=[RunFiles(stdin=stdin) for stdin in inputs],
        judge=digest,
        limits=prepared.limits,
        mode=mode_of(problem),
        function=problem.function or "",
        max_limit_hits=max_limit_hits,
    )
    return pool.submit(job)


def _judgement(verdicts: tuple[Verdict, ...], missing_cause: MissingCause | None, said: dict[int, bytes]) -> Judgement:
    return Judgement(
        verdicts=verdicts,
        missing_cause=missing_cause,
        behaviour=behaviour_on(said, verdicts),
        is_constant=is_constant_on(said, verdicts),
    )


def _what(problem: Problem, output: bytes) -> bytes:
    """A digest of what an output says, the same however it is laid out."""
    is_value = problem.function is not None or problem.values == "python"
    # where the judge may take 1.0 for 1; under `tokens` and `exact` it does not, and agreement must not either
    is_numeric = problem.checker is not None or problem.compare in ("tokens_float", "lines_decimal")
    is_literal = problem.values == "python"
    said = behaviour_of(output, is_value=is_value, is_literal=is_literal, is_numeric=is_numeric)
    return hashlib.sha256(said).digest()[:DIGEST_BYTES]


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


def _program_job(
    prepared: PreparedProblem, program: bytes, inputs: Sequence[bytes], judge: Judge, max_limit_hits: int
) -> Job:
    return Job(
        source=program,
        runs=[RunFiles(stdin=stdin) for stdin in inputs],
        judge=judge,
        limits=prepared.limits,
        mode=mode_of(prepared.problem),
        function=prepared.problem.function or "",
        max_limit_hits=max_limit_hits,
    )


class _Checking:
    """Two jobs by turns: the program on a slice of the tests, then the checker on the outputs of runs that ended well.

    Few outputs are held that way, and each for a short time: all jobs but the first go to the head of the queue.
    Runs of the program and of the checker that end at a limit count together against `max_limit_hits`.
    """

    def __init__(self, pool: SandboxPool, prepared: PreparedProblem, program: bytes, max_limit_hits: int) -> None:
        self.judgement: Future[Judgement] = Future()
        self._pool = pool
        self._prepared = prepared
        self._program = program
        self._max_limit_hits = max_limit_hits
        self._num_limit_hits = 0
        self._verdict_of_rest: Verdict = "time_limit"
        self._missing_cause: MissingCause | None = None
        self._verdicts: list[Verdict] = []
        self._outputs: dict[int, bytes] = {}
        self._said: dict[int, bytes] = {}
        self._run_program()

    def _run_program(self) -> None:
        inputs = self._prepared.inputs[len(self._verdicts) :][:MAX_RUNS_PER_REQUEST]
        job = _program_job(self._prepared, self._program, inputs, self._keep_output, self._num_hits_left)
        self._start(job, self._run_checker, is_next=bool(self._verdicts))

    def _keep_output(self, index: int, outcome: Outcome, output: bytes) -> Verdict:
        failure = failure_of(outcome, len(output), self._prepared.limits.output_bytes)
        test = len(self._verdicts) + index
        self._said.pop(test, None)
        if failure is not None:
            return failure
        if len(output) > MAX_CHECKED_BYTES + MAX_CHECKED_FACTOR * len(self._prepared.expected[test]):
            return "output_limit"
        if self._prepared.problem.values == "json" or is_literal(output):  # a checker may evaluate a literal
            self._outputs[test] = output
            self._said[test] = _what(self._prepared.problem, output)
        return "wrong_answer"  # until the checker approves

    def _run_checker(self, verdicts: tuple[Verdict, ...]) -> None:
        self._verdicts += verdicts
        if not self._outputs:
            self._go_on(())
            return
        prepared = self._prepared
        job = Job(
            source=encode(prepared.problem.checker or ""),
            runs=[
                RunFiles(stdin=prepared.inputs[test], expected=prepared.expected[test], output=output)
                for test, output in self._outputs.items()
            ],
            judge=_checker_verdict,
            limits=CHECKER_LIMITS,
            mode="checker",
            max_limit_hits=self._num_hits_left,
        )
        self._start(job, self._go_on, is_next=True)

    def _go_on(self, checked: tuple[Verdict, ...]) -> None:
        """Take the checker's verdicts; continue with the next slice, or end."""
        for test, verdict in zip(self._outputs, checked, strict=True):
            self._verdicts[test] = verdict
        self._outputs = {}
        num_left = len(self._prepared.inputs) - len(self._verdicts)
        if num_left and not self._has_hit_limits:
            self._run_program()
            return
        self._verdicts += [self._verdict_of_rest] * num_left
        self.judgement.set_result(_judgement(tuple(self._verdicts), self._missing_cause, self._said))

    @property
    def _num_hits_left(self) -> int:
        return self._max_limit_hits and max(1, self._max_limit_hits - self._num_limit_hits)

    @property
    def _has_hit_limits(self) -> bool:
        return 0 < self._max_limit_hits <= self._num_limit_hits

    def _start(self, job: Job, turn: Callable[[tuple[Verdict, ...]], None], *, is_next: bool) -> None:
        def take(done: "Future[tuple[Verdict, ...]]") -> None:
            try:
                verdicts = done.result()
                self._missing_cause = self._missing_cause or job.missing_cause
                if job.num_limit_hits:
                    self._num_limit_hits += job.num_limit_hits
                    self._verdict_of_rest = job.judge(0, Outcome(kind=job.last_limit), b"")
                turn(verdicts)
            except Exception as error:  # noqa: BLE001 - raised again where the verdicts are asked for
                self.judgement.set_exception(error)

        self._pool.submit(job, is_next=is_next).add_done_callback(take)


def _checker_verdict(_: int, outcome: Outcome, output: bytes) -> Verdict:
    if outcome.kind == "internal":
        return "infra_error"
    has_ended = outcome.kind == "exited" and outcome.status == 0
    return "passed" if has_ended and output.strip() in CHECKER_APPROVALS else "wrong_answer"
