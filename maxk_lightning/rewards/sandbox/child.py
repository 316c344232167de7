"""What happens in the fresh fork: lock down, compile, run as `__main__`, end. Standard library only.

Everything after `_lock_down` is at the mercy of the program; nothing here is trusted with a verdict. The pipe of stage
marks is closed before the program's first instruction, so it can not pretend that the sandbox failed.
"""

import atexit
import builtins
import collections
import gc
import json
import marshal
import math
import os
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

from maxk_lightning.rewards.sandbox import lockdown
from maxk_lightning.rewards.sandbox.protocol import MEMORY_EXIT_STATUS, Limits, Request
from maxk_lightning.rewards.sandbox.seccomp import inner_filter
from maxk_lightning.rewards.sandbox.syscalls import MACHINE

MARK_LOCKED, MARK_NOT_COMPILED = b"L", b"C"
"Stages a child reports: locked down; the program does not compile."

MAX_FDS_SERVER = 256
MAX_FDS_PROGRAM = 64
MAX_THREADS = 256
CHECKER_FDS = (3, 4, 5)
FINALISER = b"__del__"
"A program without this name has no finalisers to run at its end."
_PID_PLACEHOLDER = 0x7EADBEEF
_PID_BYTES = struct.pack("=I", _PID_PLACEHOLDER)
HEADER_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
"""LiveCodeBench's header (lcb_runner/evaluation/testing_util.py, commit 28fef95): star imports of these, `builtins` and
`typing`, in this order; then these modules themselves, so that `datetime` is the module; then the recursion limit."""
HEADER_RECURSION_LIMIT = 50_000
HEX_BITS = 13_000
"Longer integers are written in base 16: decimal takes quadratic time, and Python refuses more than 4300 digits."


class InnerFilter:
    """The inner filter, ready but for the child's pid, so that a child builds nothing."""

    def __init__(self) -> None:
        template = inner_filter(MACHINE, _PID_PLACEHOLDER)
        self._places = [at for at in range(0, len(template), 4) if template[at : at + 4] == _PID_BYTES]
        assert len(self._places) == 3
        self._filter = lockdown.SeccompFilter(template)

    def install(self) -> None:
        """Install it with the calling process's pid."""
        pid = os.getpid()
        for place in self._places:
            struct.pack_into("=I", self._filter.buffer, place, pid)
        self._filter.install()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the server prepares once for all its children."""

    server_pid: int
    "Parent of every child."
    ruleset_fd: int | None
    "Landlock ruleset to enter; None only when the user accepted its absence."
    inner_filter: InnerFilter | None
    "The inner seccomp filter; None only when the user accepted its absence."
    marks_fd: int
    "Write end of the pipe of stage marks."
    max_processes: int | None
    "RLIMIT_NPROC; None where the kernel does not count this process alone."
    header: dict[str, Any]
    "Names of LiveCodeBench's header."


def run_child(cell: Cell, request: Request, source_fd: int, code_fd: int, run_fds: Sequence[int]) -> None:
    """Run one program in the calling (freshly forked) process; never returns."""
    try:
        _lock_down(cell, request.limits, run_fds)
        os.write(cell.marks_fd, MARK_LOCKED)
    except (OSError, ValueError):
        os._exit(1)  # without a mark: the sandbox failed, not the program
    code, has_finalisers = _load_code(cell, request, source_fd, code_fd)
    try:
        _close_everything(request, run_fds)
    except OSError:
        os._exit(1)
    output_bytes = request.limits.output_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    gc.enable()
    names = _header_for(cell, request)
    if request.mode.endswith("call"):
        call = _literal_call if request.mode == "literal_call" else _json_call
        status = _exit_status_of(lambda: call(names, code, request.function))
    else:
        main = _fresh_main()
        main.__dict__.update(names)
        status = _exit_status_of(lambda: exec(code, main.__dict__))
    _finish(status, has_finalisers)


def _lock_down(cell: Cell, limits: Limits, run_fds: Sequence[int]) -> None:
    lockdown.die_with_parent()
    if os.getppid() != cell.server_pid:
        os._exit(1)
    os.dup2(run_fds[0], 0)
    os.dup2(run_fds[1], 1)
    cpu_seconds = int(limits.cpu_s) + 2  # a backstop: the server reads the clock in finer steps
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FDS_PROGRAM, MAX_FDS_PROGRAM))
    if cell.max_processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (cell.max_processes, cell.max_processes))
    if cell.ruleset_fd is not None:
        lockdown.landlock_restrict(cell.ruleset_fd)
    if cell.inner_filter is not None:
        cell.inner_filter.install()


def _load_code(cell: Cell, request: Request, source_fd: int, code_fd: int) -> tuple[CodeType, bool]:
    """Compile the program, or take what an earlier run of it compiled; what does not compile ends here."""
    try:
        compiled = _read_all(code_fd)
        if compiled:
            return marshal.loads(compiled), FINALISER in compiled
        source = _read_all(source_fd)
        code = compile(source, "main.py", "exec", dont_inherit=True)
    except BaseException:  # noqa: BLE001 - the parser meets hostile text: any failure is the program's
        os.write(cell.marks_fd, MARK_NOT_COMPILED)
        os._exit(1)
    if request.num_runs > 1:
        os.pwrite(code_fd, marshal.dumps(code), 0)
    return code, FINALISER in source


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _close_everything(request: Request, run_fds: Sequence[int]) -> None:
    """Leave descriptors 0 to 2, and a checker its three files."""
    if request.mode == "checker":
        files = (run_fds[0], run_fds[2], run_fds[3])
        for fd, target in zip(files, CHECKER_FDS, strict=True):
            os.dup2(fd, target, inheritable=False)
        sys.argv = ["checker.py", *(f"/proc/self/fd/{fd}" for fd in CHECKER_FDS)]
    lockdown.close_from(CHECKER_FDS[-1] + 1 if request.mode == "checker" else 3)


def _fresh_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__file__="main.py", __builtins__=builtins)
    sys.modules["__main__"] = main
    return main


def _header_for(cell: Cell, request: Request) -> dict[str, Any]:
    """Names that the program finds imported, but never the function that it shall define."""
    if not request.mode.startswith("headed"):
        return {}
    sys.setrecursionlimit(HEADER_RECURSION_LIMIT)
    return {name: value for name, value in cell.header.items() if name != request.function}


def _json_call(names: dict[str, Any], code: CodeType, function: str) -> None:
    """Call with the JSON arguments of standard input, one per line; print the JSON result."""
    dumps = json.dumps
    arguments = [json.loads(line) for line in _argument_lines()]
    _answer(lambda: dumps(_call(names, code, function, arguments)))


def _literal_call(names: dict[str, Any], code: CodeType, function: str) -> None:
    """Call with the Python literals of standard input, one per line; print the result as a literal."""
    words = {"inf": math.inf, "nan": math.nan, "Counter": collections.Counter}
    arguments = [eval(line, dict(words)) for line in _argument_lines()]
    _answer(lambda: literal_of(_call(names, code, function, arguments)))


def _argument_lines() -> list[str]:
    return [line for line in sys.stdin.read().split("\n") if line.strip()]


def _answer(call: Callable[[], str]) -> None:
    """Write what a call gives to standard output, and nothing that the program prints."""
    result_fd = os.dup(1)
    os.dup2(2, 1)
    answer = call().encode()
    while answer:
        answer = answer[os.write(result_fd, answer) :]


def _call(names: dict[str, Any], code: CodeType, function: str, arguments: list[Any]) -> Any:
    """Call the program's function, or method of `Solution`."""
    module = ModuleType("solution")
    module.__dict__.update(names)
    sys.modules["solution"] = module
    exec(code, module.__dict__)
    solution = getattr(module, "Solution", None)
    if solution is not None and hasattr(solution, function):
        return getattr(solution(), function)(*arguments)
    return module.__dict__[function](*arguments)


def literal_of(value: Any) -> str:
    """Python text of a value: subclasses as what they derive from, other iterables as `iter([...])`, else `object()`.

    >>> literal_of([(1,), {"a": {2.0}}, None, map(abs, [-3])])
    "[(1,), {'a': {2.0}}, None, iter([3])]"
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return hex(value) if value.bit_length() > HEX_BITS else int.__repr__(value)
    for kind in (float, complex, str, bytes, range):
        if isinstance(value, kind):
            return kind.__repr__(value)
    if isinstance(value, dict):
        items = ", ".join(f"{literal_of(key)}: {literal_of(item)}" for key, item in dict.items(value))
        return f"Counter({{{items}}})" if isinstance(value, collections.Counter) else f"{{{items}}}"
    if not hasattr(type(value), "__iter__"):
        return "object()"
    items = ", ".join(map(literal_of, value))
    if isinstance(value, list):
        return f"[{items}]"
    if isinstance(value, tuple):
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, set | frozenset):
        return f"{{{items}}}" if items else "set()"
    return f"deque([{items}])" if isinstance(value, collections.deque) else f"iter([{items}])"


def _exit_status_of(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as end:
        return _status_of_system_exit(end.code)
    except MemoryError:
        return MEMORY_EXIT_STATUS
    except BaseException:  # noqa: BLE001 - whatever an untrusted program raises is its failure
        return 1
    return 0


def _status_of_system_exit(code: object) -> int:
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _finish(status: int, has_finalisers: bool) -> None:
    """End as the interpreter would (threads, exit handlers, finalisers, flushed output), without its clean-up."""
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
        if has_finalisers:
            sys.modules["__main__"].__dict__.clear()
        sys.stdout.flush()
    except MemoryError:
        status = status or MEMORY_EXIT_STATUS
    except BaseException:  # noqa: BLE001 - handlers and replaced streams are the program's
        status = status or 120  # what the interpreter returns when it can not flush
    os._exit(status)
