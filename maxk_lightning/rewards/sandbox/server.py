"""The fork server: waits for requests and runs every test in a fresh, locked-down fork of itself.

It runs alone in a new interpreter (`python -I -S`), holds no program text, inputs or answers, and ends when its control
socket or its owner does. Standard library only; its start time is paid once per worker.
"""

import builtins
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from maxk_lightning.rewards.sandbox import child, lockdown
from maxk_lightning.rewards.sandbox.protocol import (
    LIMIT_HITS,
    MAX_REQUEST_BYTES,
    READY,
    Outcome,
    OutcomeKind,
    Request,
    ServerConfig,
    pack_reply,
)
from maxk_lightning.rewards.sandbox.seccomp import outer_filter
from maxk_lightning.rewards.sandbox.syscalls import MACHINE

PRELOAD = (
    "array bisect cmath collections copy datetime decimal fractions functools heapq io itertools json math operator"
    " random re statistics string struct time typing"
)
"Modules that programs often import, in memory after the fork; not `threading`: its fork hook is dear."
STACK_BYTES = 256 << 20
"Main-thread stack for deep recursion; must be in force before the interpreter starts."
THREAD_STACK_BYTES = 8 << 20
RANDOM_SEED = 20251023
TICK_S = 0.05
"How often a running program's clocks and threads are looked at."
MAX_FDS_PER_MESSAGE = 253
WARM_UP = "import sys\ndef f(a, b=1):\n    return [x * b for x in a if x]\nprint(f'{f([1, 2])}', end='')\n"


def main() -> None:
    """Start from the command line: control descriptor, owner's pidfd, configuration as JSON."""
    _ensure_stack()
    control_fd, owner_fd = _tidy_descriptors(int(sys.argv[1]), int(sys.argv[2]))
    config = ServerConfig(**json.loads(sys.argv[3]))
    sys.argv, sys.orig_argv = ["main.py"], ["python3", "main.py"]  # ours tell where the package lies
    control = socket.socket(fileno=control_fd)
    server = Server(control, owner_fd, config)
    os.dup2(0, 2)  # from here on nobody reads errors, and a shared file would carry messages between tests
    control.send(READY)
    server.serve()


def _tidy_descriptors(*fds: int) -> list[int]:
    """Move the given descriptors, numbered by the owner, behind a reserved range; close all others."""
    first = child.CHECKER_FDS[-1] + 1
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(fds)) for fd in fds]
    for target in child.CHECKER_FDS:  # programs' descriptors never land here
        os.dup2(0, target, inheritable=False)
    low = [os.dup2(fd, first + index, inheritable=False) for index, fd in enumerate(high)]
    lockdown.close_from(first + len(fds))
    return low


def _ensure_stack() -> None:
    """Restart once under the large stack limit: the kernel lays out memory for it only at exec."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft == resource.RLIM_INFINITY or soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, wanted))
        os.execv(sys.executable, sys.orig_argv)


class Server:
    """One worker: serves requests one after the other."""

    def __init__(self, control: socket.socket, owner_fd: int, config: ServerConfig) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control.fileno(), 0)  # hang-up only
        self._poll.register(owner_fd, select.POLLIN)
        self._owner_events = {control.fileno(), owner_fd}
        self._idle_poll = select.poll()
        self._idle_poll.register(control.fileno(), select.POLLIN)
        self._idle_poll.register(owner_fd, select.POLLIN)
        self._owner_fd = owner_fd
        self._marks_read, marks_write = os.pipe()
        os.set_blocking(self._marks_read, False)
        header = _preload()
        sys.path.extend(config.extra_path)
        exec(config.warm_up, {"__name__": "warm_up"})
        is_alone = _leave_root(config.unprivileged_uid) or config.is_alone_in_user
        self._cell = child.Cell(
            server_pid=os.getpid(),
            ruleset_fd=lockdown.landlock_ruleset(config.readable) if config.needs_landlock else None,
            inner_filter=child.InnerFilter() if config.needs_seccomp else None,
            marks_fd=marks_write,
            max_processes=child.MAX_THREADS if is_alone and os.getuid() != 0 else None,
            header=header,
            builtins=dict(vars(builtins)),
        )
        _limit_server()
        lockdown.prctl(lockdown.PR_SET_NO_NEW_PRIVS, 1)
        if config.needs_seccomp:
            lockdown.SeccompFilter(outer_filter(MACHINE)).install()
        _forget_ourselves()

    def serve(self) -> NoReturn:
        """Answer requests until the owner is gone."""
        while True:
            # The socket alone does not tell: forks of the owner may hold its other end.
            if any(fd == self._owner_fd for fd, _ in self._idle_poll.poll()):
                os._exit(0)
            message, fds, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, MAX_FDS_PER_MESSAGE)
            if not message:
                os._exit(0)
            request = Request.unpack(message)
            outcomes = self._run_all(request, fds)
            for fd in fds:
                os.close(fd)
            try:
                self._control.send(pack_reply(request.id, outcomes))
            except OSError:
                os._exit(0)

    def _run_all(self, request: Request, fds: list[int]) -> list[Outcome]:
        """Run the program once per pair of descriptors, unless an earlier run decides for the later ones."""
        source_fd, code_fd = fds[:2]
        step = request.num_fds_per_run
        outcomes: list[Outcome] = []
        num_limit_hits, last_limit = 0, LIMIT_HITS[0]
        for start in range(2, 2 + step * request.num_runs, step):
            if request.max_limit_hits and num_limit_hits >= request.max_limit_hits:
                outcomes.append(Outcome(kind=last_limit))
                continue
            outcome, compiles = self._run_one(request, source_fd, code_fd, fds[start : start + step])
            outcomes.append(outcome)
            if not compiles:
                return [outcome] * request.num_runs
            if outcome.kind in LIMIT_HITS:
                num_limit_hits, last_limit = num_limit_hits + 1, outcome.kind
        return outcomes

    def _run_one(self, request: Request, source_fd: int, code_fd: int, fds: list[int]) -> tuple[Outcome, bool]:
        start = time.monotonic()
        fcntl.fcntl(2, fcntl.F_SETFL, 0)  # an earlier program may have left a message in the flags of this shared file
        try:
            pid = os.fork()
        except OSError:
            return Outcome(kind="internal"), True
        if pid == 0:
            child.run_child(self._cell, request, source_fd, code_fd, fds)
        killed = self._supervise(pid, start, request)
        _, wait_status, usage = os.wait4(pid, 0)
        marks = self._read_marks()
        if child.MARK_LOCKED not in marks:
            return Outcome(kind="internal"), True
        cpu_s = usage.ru_utime + usage.ru_stime
        outcome = Outcome(
            kind=killed or _kind_of(wait_status, cpu_s, usage.ru_maxrss << 10, request),
            status=os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status),
            cpu_s=cpu_s,
            wall_s=time.monotonic() - start,
            max_rss_bytes=usage.ru_maxrss << 10,
        )
        return outcome, child.MARK_NOT_COMPILED not in marks

    def _supervise(self, pid: int, start: float, request: Request) -> OutcomeKind | None:
        """Wait for the child's end; kill it at a limit and say which, or end with it when the owner is gone."""
        limits = request.limits
        cpu_clock = (~pid << 3) | 2  # the kernel's CPUCLOCK_SCHED of a process
        pidfd = os.pidfd_open(pid)
        self._poll.register(pidfd, select.POLLIN)
        try:
            while True:
                events = self._poll.poll(TICK_S * 1000)
                if events:
                    if any(fd in self._owner_events for fd, _ in events):
                        os.kill(pid, signal.SIGKILL)
                        os._exit(0)
                    return None
                limit = _limit_hit(pid, cpu_clock, start, limits.cpu_s, limits.wall_s)
                if limit:
                    os.kill(pid, signal.SIGKILL)
                    return limit
        finally:
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def _read_marks(self) -> bytes:
        try:
            return os.read(self._marks_read, 16)
        except BlockingIOError:
            return b""


def _limit_hit(pid: int, cpu_clock: int, start: float, cpu_limit_s: float, wall_limit_s: float) -> OutcomeKind | None:
    if time.clock_gettime(cpu_clock) > cpu_limit_s:
        return "cpu_limit"
    if time.monotonic() - start > wall_limit_s:
        return "wall_limit"
    return "signalled" if _num_threads(pid) > child.MAX_THREADS else None


def _num_threads(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[17])
    except (OSError, IndexError, ValueError):
        return 0  # hidden or already gone: RLIMIT_AS still bounds the threads


def _kind_of(wait_status: int, cpu_s: float, max_rss_bytes: int, request: Request) -> OutcomeKind:
    """Classify an end that the server did not cause."""
    if cpu_s > request.limits.cpu_s:
        return "cpu_limit"
    if not os.WIFSIGNALED(wait_status):
        return "exited"
    name = os.WTERMSIG(wait_status)
    if name == signal.SIGXFSZ:
        return "output_limit"
    # A program can not bring SIGKILL on itself: the kernel sent it, short of memory, or a person.
    if name == signal.SIGKILL and max_rss_bytes < request.limits.memory_bytes // 2:
        return "internal"
    return "signalled"


def _preload() -> dict[str, Any]:
    """Import what programs often need, warm the compiler, and collect the names of LiveCodeBench's header."""
    _preload_random()
    for name in PRELOAD.split():
        importlib.import_module(name)
    quitter = importlib.import_module("_sitebuiltins").Quitter  # what `site` would do, which -S leaves out
    builtins.quit, builtins.exit = quitter("quit", "Ctrl-D"), quitter("exit", "Ctrl-D")
    compile(WARM_UP, "main.py", "exec")
    names: dict[str, Any] = {}
    modules = {name: importlib.import_module(name) for name in child.HEADER_MODULES.split()}
    for module in (*modules.values(), builtins, importlib.import_module("typing")):
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        names.update({key: getattr(module, key) for key in public})
    return names | modules


def _preload_random() -> None:
    """Import `random` with a fixed seed: every run draws the same numbers, so that verdicts can be reproduced.

    Its own hook would draw a new seed after each fork, at a price of a tenth of the whole run.
    """
    register = os.register_at_fork
    os.register_at_fork = lambda **_: None
    try:
        importlib.import_module("random").seed(RANDOM_SEED)
    finally:
        os.register_at_fork = register


def _leave_root(uid: int) -> bool:
    """Become an unused user and drop every capability. Returns whether the user could be changed.

    Where only root can read the interpreter, the new user keeps the capability to read (landlock still says what), and
    where root itself lacks that one, as in many containers, it stays root without capabilities.
    """
    if os.geteuid() != 0:
        return False
    kept = () if _can_read_interpreter_as(uid) else (lockdown.CAP_DAC_READ_SEARCH,)
    if not lockdown.has_capabilities(kept):
        lockdown.drop_capabilities()
        return False
    lockdown.prctl(lockdown.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    lockdown.drop_capabilities(keep=kept)
    lockdown.prctl(lockdown.PR_SET_DUMPABLE, 1)  # checkers open /proc/self/fd
    return True


def _can_read_interpreter_as(uid: int) -> bool:
    try:
        os.setegid(uid)
        os.seteuid(uid)
        try:
            with open(os.__file__, "rb"):
                return True
        finally:
            os.seteuid(0)
            os.setegid(0)
    except OSError:
        return False


def _limit_server() -> None:
    """Limits that server and programs share."""
    lockdown.set_hard_limit(resource.RLIMIT_CORE, 1)  # 0 would still start the machine's core-dump program
    lockdown.set_hard_limit(resource.RLIMIT_MEMLOCK, 0)
    lockdown.set_hard_limit(resource.RLIMIT_MSGQUEUE, 0)
    lockdown.set_hard_limit(resource.RLIMIT_NOFILE, child.MAX_FDS_SERVER)
    lockdown.set_default_thread_stack(THREAD_STACK_BYTES)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends a flood at once; Python ignores it
    os.chdir("/")
    os.umask(0o077)


def _forget_ourselves() -> None:
    """Hide the server from the programs' view and make what it holds cheap to fork."""
    for name in [name for name in sys.modules if name.split(".")[0] == "maxk_lightning"]:
        del sys.modules[name]
    gc.collect()
    gc.disable()
    gc.freeze()
