"""Spread jobs over the workers, from one thread of the calling process; replace dead workers and rerun their jobs."""

import collections
import errno
import functools
import logging
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from maxk_lightning.rewards.sandbox.jobs import Job, close_all, input_file, memory_file, read_output
from maxk_lightning.rewards.sandbox.protocol import (
    MAX_RUNS_PER_REQUEST,
    Outcome,
    Request,
)
from maxk_lightning.rewards.sandbox.worker import Worker, WorkerLostError, WorkerSettings
from maxk_lightning.types import MissingCause

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"How often a job meets a failing sandbox before its runs are given up as `internal`."
MAX_FAILED_STARTS = 5
RESTART_PAUSE_S = 0.2
START_TIMEOUT_S = 60.0
REPLY_GRACE_S = 30.0
"On top of the wall limits of all runs of a request, before a silent worker is taken for hung."


@dataclass(slots=True, eq=False)
class _Flight:
    """One request on its way."""

    job: Job
    indexes: list[int]
    output_fds: list[int]
    request_id: int
    allowance_s: float
    deadline: float


class SandboxPool:
    """Runs jobs on `num_workers` fork servers; thread-safe; starts at the first job."""

    def __init__(self, settings: WorkerSettings, num_workers: int) -> None:
        self.owner_pid = os.getpid()
        self._settings = settings
        self._num_workers = num_workers
        self._queue: collections.deque[Job] = collections.deque()
        self._lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closing = False
        self._workers: dict[Worker, collections.deque[_Flight]] = {}
        self._selector = selectors.DefaultSelector()
        self._next_id = 0
        self._num_started = 0
        self._num_failed_starts = 0
        self._thread = threading.Thread(target=self._run, name="sandbox-pool", daemon=True)
        self._thread.start()

    def submit(self, job: Job, *, is_next: bool = False) -> "Future[tuple[Any, ...]]":
        """Queue a job, with `is_next` before all others; its future gets one result per run."""
        with self._lock:
            if self._is_closing:
                raise RuntimeError("the sandbox pool is closed")
            if is_next:
                self._queue.appendleft(job)
            else:
                self._queue.append(job)
            job.future.set_running_or_notify_cancel()
        self._wake()
        return job.future

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in list(self._workers)]

    def close(self) -> None:
        """Stop the workers; jobs not finished get a RuntimeError. Idempotent."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        try:
            while not self._is_closing:
                try:
                    self._step()
                except Exception as error:  # a bug: the jobs at hand fail, the pool lives on
                    logger.exception("the sandbox pool met the unexpected; its jobs fail")
                    self._end_all(functools.partial(Job.fail, error=error))
        finally:
            self._shut_down()

    def _step(self) -> None:
        self._dispatch()
        for key, _ in self._selector.select(self._time_left()):
            if key.data is None:
                os.eventfd_read(self._wake_fd)
            elif key.data in self._workers:
                self._receive(key.data)
        self._replace_hung_workers()

    def _shut_down(self) -> None:
        with self._lock:
            self._is_closing = True
        self._end_all(lambda job: job.future.set_exception(RuntimeError("the sandbox pool was closed")))
        self._selector.close()
        os.close(self._wake_fd)

    def _end_all(self, end: Callable[[Job], None]) -> None:
        """End every job that runs or waits, then stop the workers."""
        flights = [flight for flights in self._workers.values() for flight in flights]
        jobs = [flight.job for flight in flights]
        while self._queue:
            jobs.append(self._queue.popleft())
        for job in jobs:
            if not job.future.done():
                end(job)
        for flight in flights:
            close_all(flight.output_fds)
        for worker in list(self._workers):
            self._remove(worker)

    def _dispatch(self) -> None:
        """Start missing workers and give every free one a job, and a second one while many wait."""
        if self._queue or any(self._workers.values()):
            while len(self._workers) < self._num_workers and self._start_worker():
                pass
        for depth in (1, 2):
            for worker, flights in list(self._workers.items()):
                is_worth_it = depth == 1 or len(self._queue) > self._num_workers
                if worker.is_ready and len(flights) < depth and self._queue and is_worth_it:
                    self._send(worker, self._queue.popleft())

    def _start_worker(self) -> bool:
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            self._give_up_queue()
            return False
        try:
            worker = Worker(self._settings, self._num_started)
        except OSError as error:
            logger.error("cannot start a sandbox worker: %s", error)
            self._num_failed_starts += 1
            return False
        self._num_started += 1
        self._workers[worker] = collections.deque()
        self._selector.register(worker.socket, selectors.EVENT_READ, worker)
        return True

    def _give_up_queue(self) -> None:
        logger.error("%d sandbox workers in a row failed to start; waiting jobs are given up", MAX_FAILED_STARTS)
        self._num_failed_starts = 0
        while self._queue:
            self._continue(self._queue.popleft(), "no_worker")

    def _send(self, worker: Worker, job: Job) -> None:
        indexes = job.pending[:MAX_RUNS_PER_REQUEST]
        request = Request(
            id=self._next_id,
            mode=job.mode,
            num_runs=len(indexes),
            max_limit_hits=max(0, job.max_limit_hits - job.num_limit_hits),
            limits=job.limits,
            function=job.function,
        )
        self._next_id += 1
        sent_fds: list[int] = []
        output_fds: list[int] = []
        try:
            sent_fds += [input_file(job.source), memory_file()]
            for index in indexes:
                files = job.runs[index]
                sent_fds.append(input_file(files.stdin))
                output_fds.append(memory_file())
                sent_fds.append(output_fds[-1])
                if job.mode == "checker":
                    sent_fds += [input_file(files.expected), input_file(files.output)]
            worker.send(request, sent_fds)
        except WorkerLostError as error:
            self._queue.appendleft(job)
            close_all(output_fds)
            self._lose(worker, error)
        except OSError as error:
            close_all(output_fds)
            self._postpone(job, error)
        except Exception as error:  # noqa: BLE001 - a request that cannot be written is a bug; its job fails
            close_all(output_fds)
            job.fail(error)
        else:
            allowance_s = len(indexes) * job.limits.wall_s + REPLY_GRACE_S
            deadline = time.monotonic() + allowance_s
            self._workers[worker].append(_Flight(job, indexes, output_fds, request.id, allowance_s, deadline))
        finally:
            close_all(fd for fd in sent_fds if fd not in output_fds)

    def _postpone(self, job: Job, error: OSError) -> None:
        """Out of descriptors or memory: wait for jobs under way to free some, or give up where there are none."""
        is_shortage = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETOOMANYREFS, errno.EAGAIN)
        if is_shortage and any(self._workers.values()):
            self._queue.appendleft(job)
            return
        logger.error("cannot hand a program to the sandbox: %s", error)
        self._continue(job, "hand_over_failed")

    def _receive(self, worker: Worker) -> None:
        try:
            reply = worker.receive()
        except WorkerLostError as error:
            self._lose(worker, error)
            return
        if worker.is_ready:
            self._num_failed_starts = 0
        if reply is not None:
            request_id, outcomes = reply
            flights = self._workers[worker]
            if not flights or (flights[0].request_id, len(flights[0].indexes)) != (request_id, len(outcomes)):
                self._lose(worker, WorkerLostError(f"process {worker.process.pid} answers what nobody asked"))
                return
            flight = flights.popleft()
            for successor in flights:  # its time begins only at this point
                successor.deadline = time.monotonic() + successor.allowance_s
            self._conclude(flight, outcomes)

    def _conclude(self, flight: _Flight, outcomes: list[Outcome]) -> None:
        job = flight.job
        has_internal = False
        try:
            for index, fd, outcome in zip(flight.indexes, flight.output_fds, outcomes, strict=True):
                if outcome.kind == "internal" and job.num_attempts + 1 < MAX_ATTEMPTS:
                    has_internal = True
                else:
                    job.conclude(index, _final(outcome), read_output(fd, job.limits.output_bytes))
        except Exception as error:  # noqa: BLE001 - a judge that raises is a bug; its job fails, the pool lives on
            job.fail(error)
            return
        finally:
            close_all(flight.output_fds)
        job.num_attempts += has_internal
        self._continue(job)

    def _continue(self, job: Job, cause: MissingCause | None = None) -> None:
        """Queue what is left of a job, or finish it; with a cause, what is left is given up."""
        job.pending = [index for index in job.pending if index not in job.results]
        try:
            if job.max_limit_hits and job.num_limit_hits >= job.max_limit_hits:
                job.conclude_rest(Outcome(kind=job.last_limit))
            elif cause is not None:
                job.missing_cause = cause
                job.conclude_rest(Outcome(kind="internal"))
        except Exception as error:  # noqa: BLE001 - as above
            job.fail(error)
            return
        if job.pending:
            self._queue.appendleft(job)
        else:
            job.future.set_result(tuple(job.results[index] for index in range(len(job.runs))))

    def _lose(self, worker: Worker, error: WorkerLostError) -> None:
        """Run the jobs of a dead worker again; only the one it was running counts an attempt."""
        if worker not in self._workers:
            return
        flights = self._workers[worker]
        logger.warning("sandbox worker lost (%s); running %d job(s) again", error, len(flights))
        self._num_failed_starts += not worker.is_ready
        self._remove(worker)
        for position, flight in reversed(list(enumerate(flights))):
            close_all(flight.output_fds)
            flight.job.num_attempts += position == 0
            if flight.job.num_attempts >= MAX_ATTEMPTS:
                self._continue(flight.job, "worker_lost")
            else:
                self._queue.appendleft(flight.job)

    def _remove(self, worker: Worker) -> None:
        self._selector.unregister(worker.socket)
        del self._workers[worker]
        worker.stop()

    def _replace_hung_workers(self) -> None:
        now = time.monotonic()
        for worker, flights in list(self._workers.items()):
            if flights and now > flights[0].deadline:
                self._lose(worker, WorkerLostError(f"no answer from process {worker.process.pid}"))
            elif not worker.is_ready and now > worker.started_at + START_TIMEOUT_S:
                self._lose(worker, WorkerLostError(f"no start of process {worker.process.pid}"))

    def _time_left(self) -> float | None:
        if self._queue and len(self._workers) < self._num_workers:
            return RESTART_PAUSE_S  # a worker could not be started
        return REPLY_GRACE_S if any(self._workers.values()) or self._queue else None


def _final(outcome: Outcome) -> Outcome:
    """How a run counts that is not tried again: what was killed until the last attempt has brought it about itself."""
    is_killed = outcome.kind == "internal" and outcome.status == signal.SIGKILL
    return replace(outcome, kind="signalled") if is_killed else outcome
