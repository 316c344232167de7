"""Find out what isolation really holds on this machine, by trying every forbidden thing inside the sandbox.

Version numbers are not trusted: kernels announce features that they lack, and containers take others away.
"""

import functools
import logging
import os
import platform
import shutil
import sys
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Literal

from maxk_lightning.rewards.sandbox.jobs import Job, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome, OutcomeKind
from maxk_lightning.rewards.sandbox.worker import Backend, WorkerSettings

logger = logging.getLogger(__name__)

SELF_TEST_TIMEOUT_S = 60.0
LIMITS = Limits(cpu_s=0.2, wall_s=20.0, memory_bytes=1 << 30, output_bytes=1 << 16)
KERNEL = "a Linux kernel from 5.13 on with seccomp and landlock (in Docker: version 23 or newer, default profile)"


class SandboxUnavailableError(RuntimeError):
    """Untrusted programs can not be isolated here; the message is one sentence with property and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One property and a program that tries to break it."""

    property: str
    "What must hold."
    program: str
    "Prints `held` when its attempt failed, or ends in the expected way."
    remedy: str
    "What brings the property about."
    ends: OutcomeKind = "exited"
    "How the program must end."
    is_repeated: bool = False
    "Whether it runs twice, for state that may leak from one test to the next."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one probe found."""

    property: str
    "As in the probe."
    is_held: bool
    "Whether the property holds."
    detail: str
    "How the probe ended, where it does not."
    remedy: str
    "As in the probe."


def _refused(attempt: str, setup: str = "import os") -> str:
    return f"{setup}\ntry: {attempt}\nexcept OSError: print('held')\n"


_DESCRIPTORS = """
import os
extra = []
for fd in range(3, 4096):
    try: os.fstat(fd); extra.append(fd)
    except OSError: pass
print(extra or 'held')
"""
_ENVIRONMENT = "import os\nprint(set(os.environ) - {names} or 'held')\n"
_STATE = "import builtins\nprint('leaked' if hasattr(builtins, 'mark') else 'held')\nbuiltins.mark = 1\n"
_MEMORY = "try: bytearray(1 << 30)\nexcept MemoryError: print('held')\n"
_LAZY = "import sqlite3, unicodedata, ctypes, zlib, difflib, threading, _strptime\nprint('held')\n"
_THREADS = "import threading\nt = threading.Thread(target=print, args=('held',))\nt.start()\nt.join()\n"
_RAISE_LIMITS = _refused("resource.setrlimit(resource.RLIMIT_CPU, (99999, 99999))", "import resource").replace(
    "OSError", "(OSError, ValueError)"
)
_CONNECT = _refused("socket.create_connection(('127.0.0.1', 1), 1)", "import socket").replace(
    "except OSError", "except ConnectionError: print('reached the network')\nexcept OSError"
)
_PRIVILEGES = "import os\ntry: os.setuid(0); print('root' if os.getuid() else 'held')\nexcept OSError: print('held')\n"

PROBES = (
    Probe(property="programs run", program="print('held')", remedy=KERNEL),
    Probe(property="threads start", program=_THREADS, remedy="a higher limit of processes for this user (ulimit -u)"),
    Probe(
        property="standard library can be imported",
        program=_LAZY,
        remedy="an interpreter that other users may read, such as /usr/bin/python3",
    ),
    Probe(property="no new process", program=_refused("os.fork(); print('forked')"), remedy=KERNEL),
    Probe(property="nothing is executed", program=_refused("os.execv('/bin/true', ['true'])"), remedy=KERNEL),
    Probe(property="no socket", program=_refused("socket.socket(); print('socket')", "import socket"), remedy=KERNEL),
    Probe(property="no network", program=_CONNECT, remedy=KERNEL),
    Probe(property="no file is written", program=_refused("open('/tmp/maxk-probe', 'w')"), remedy=KERNEL),
    Probe(property="no foreign file is read", program=_refused(f"open({__file__!r})"), remedy=KERNEL),
    Probe(
        property="no other process is read", program=_refused("open(f'/proc/{os.getppid()}/cmdline')"), remedy=KERNEL
    ),
    Probe(property="no other process is signalled", program=_refused("os.kill(os.getppid(), 0)"), remedy=KERNEL),
    Probe(property="no privilege is gained", program=_PRIVILEGES, remedy=KERNEL),
    Probe(property="no descriptor is inherited", program=_DESCRIPTORS, remedy=KERNEL),
    Probe(
        property="environment is hidden",
        program=_ENVIRONMENT.format(
            names={"PATH", "LANG", "HOME", "PWD", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
            | {"PYTHONHASHSEED", "LC_CTYPE"}
        ),
        remedy=KERNEL,
    ),
    Probe(property="no state between tests", program=_STATE, remedy=KERNEL, is_repeated=True),
    Probe(property="memory is limited", program=_MEMORY, remedy="a kernel that enforces RLIMIT_AS"),
    Probe(property="limits stay", program=_RAISE_LIMITS, remedy=KERNEL),
    Probe(
        property="CPU time is limited",
        program="while True: pass",
        remedy="a kernel with clocks of CPU time per process",
        ends="cpu_limit",
    ),
    Probe(
        property="output is limited",
        program="while True: print('x' * 4096)",
        remedy="a kernel that enforces RLIMIT_FSIZE",
        ends="output_limit",
    ),
)


def run_self_test(settings: WorkerSettings) -> list[Finding]:
    """Try every probe on one worker of its own; about half a second."""
    pool = SandboxPool(settings, num_workers=1)
    try:
        submitted = [(probe, pool.submit(_job_of(probe))) for probe in PROBES]
        return [_finding(probe, future.result(SELF_TEST_TIMEOUT_S)) for probe, future in submitted]
    except FutureTimeoutError:
        return [Finding(property="programs run", is_held=False, detail="no answer in a minute", remedy=KERNEL)]
    finally:
        pool.close()


def _job_of(probe: Probe) -> Job:
    def judge(_: int, outcome: Outcome, output: bytes) -> str:
        if outcome.kind != probe.ends:
            return f"{outcome.kind} (status {outcome.status})"
        printed = output.decode("utf-8", "replace").strip()
        return "held" if probe.ends != "exited" else printed[:80] or f"no answer, exit status {outcome.status}"

    runs = [RunFiles(stdin=b"")] * (2 if probe.is_repeated else 1)
    return Job(source=probe.program.encode(), runs=runs, judge=judge, limits=LIMITS)


def _finding(probe: Probe, details: tuple[str, ...]) -> Finding:
    failed = [detail for detail in details if detail != "held"]
    detail = failed[0] if failed else ""
    return Finding(property=probe.property, is_held=not failed, detail=detail, remedy=probe.remedy)


@functools.cache
def findings_of(settings: WorkerSettings) -> tuple[Finding, ...]:
    """The self-test's findings, tried once per process; a missing prerequisite counts as one broken property."""
    missing = _missing_prerequisite(settings.backend)
    if missing is not None:
        return (missing,)
    return tuple(run_self_test(settings))


def _missing_prerequisite(backend: Backend) -> Finding | None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        system = f"{sys.platform} on {platform.machine()}"
        remedy = "Linux on x86_64 or aarch64"
        return Finding(property="the sandbox exists for this system", is_held=False, detail=system, remedy=remedy)
    if backend == "bwrap" and shutil.which("bwrap") is None:
        remedy = "the package bubblewrap, which brings the command bwrap"
        return Finding(property="bubblewrap is installed", is_held=False, detail="no bwrap in PATH", remedy=remedy)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What the reward runs with."""

    settings: WorkerSettings
    "How workers are started."
    name: Literal["bwrap", "plain", "unsafe"]
    "For logs and reports."


def choose_isolation(
    backend: Literal["auto", "bwrap", "plain"], *, has_site_packages: bool, allow_unsafe: bool
) -> Isolation:
    """The strongest allowed backend whose self-test holds.

    Raises:
        SandboxUnavailableError: when none does and `allow_unsafe` is off.
    """
    candidates: tuple[Backend, ...] = ("bwrap", "plain") if backend == "auto" else (backend,)
    broken: Finding | None = None
    for candidate in candidates:
        settings = WorkerSettings(backend=candidate, has_site_packages=has_site_packages)
        broken = next((finding for finding in findings_of(settings) if not finding.is_held), None)
        if broken is None:
            logger.info("sandbox backend: %s (pid %d)", candidate, os.getpid())
            return Isolation(settings=settings, name=candidate)
        logger.info("sandbox backend %s is out: %s does not hold (%s)", candidate, broken.property, broken.detail)
    assert broken is not None
    if not allow_unsafe:
        raise SandboxUnavailableError(refusal(candidates[-1], broken))
    logger.warning("UNSAFE: %r does not hold, and model-written programs run with your rights", broken.property)
    return Isolation(settings=_whatever_starts(has_site_packages), name="unsafe")


def refusal(backend: str, broken: Finding) -> str:
    """One sentence: the property, what it means, the remedies."""
    return (
        f"cannot isolate untrusted programs with backend {backend}: the property {broken.property!r} does not hold"
        f" ({broken.detail}), so model-written programs would act with your rights; install {broken.remedy},"
        " see `python -m maxk_lightning doctor` for the other ways out, or accept the risk with allow_unsafe: true"
    )


def _whatever_starts(has_site_packages: bool) -> WorkerSettings:
    """The most layers that a worker starts with."""
    base = WorkerSettings(backend="plain", has_site_packages=has_site_packages)
    for needs_seccomp, needs_landlock in ((True, True), (True, False), (False, True)):
        settings = replace(base, needs_seccomp=needs_seccomp, needs_landlock=needs_landlock)
        if findings_of(settings)[0].is_held:
            return settings
    return replace(base, needs_seccomp=False, needs_landlock=False)
