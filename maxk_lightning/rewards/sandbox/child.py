"""What happens in the fresh fork: lock down, compile, run as `__main__`, end. Standard library only.

Everything after `_lock_down` is at the mercy of the program; nothing here is trusted with a verdict. The pipe of stage
marks is closed before the program's first instruction, so it can not pretend that the sandbox failed.
"""

import atexit
import builtins
import collections
import contextlib
import gc
import json
import marshal
import math
import os
import resource
import struct
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, NoReturn

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
LAST_WORDS = (b"open", b"IO", b"Buffered", b"detach", b"__del__", b"yield", b"async", b"exec", b"eval", b"coding")
"""A program without these words leaves no buffer, generator or finaliser that could still print at its end.

It is spared the finalisation of its globals, which costs a quarter of a short run."""
PLAIN, WITH_LAST_WORDS = b"-", b"+"
"First byte of a program's compiled code."
NOT_FLUSHED_STATUS = 120
"What the interpreter returns when it can not flush its standard streams."
_exit = os._exit
"Kept, because a program may put something else in its place."
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
        assert len(self._places) == 5  # kill, tgkill, prlimit64, calls about processes, getpriority
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
    builtins: dict[str, Any]
    "The built-in names as they are before a program changes them."


def run_child(cell: Cell, request: Request, source_fd: int, code_fd: int, run_fds: Sequence[int]) -> NoReturn:
    """Run one program in the calling (freshly forked) process; never returns."""
    try:
        _lock_down(cell, request.limits, run_fds)
        os.write(cell.marks_fd, MARK_LOCKED)
        code, has_last_words = _load_code(cell, request, source_fd, code_fd)
        _close_everything(request, run_fds)
        output_bytes = request.limits.output_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
        gc.enable()
        names = _header_for(cell, request)
        if request.mode.endswith("call"):
            _fresh_main({})
            call = _literal_call if request.mode == "literal_call" else _json_call
            status = _exit_status_of(lambda: call(names, code, request.function))
        else:
            _fresh_main(names)
            status = _exit_status_of(lambda: exec(code, sys.modules["__main__"].__dict__))
        _end(status, cell.builtins if has_last_words else None)
    finally:
        _exit(1)  # no exception runs on into the server's code; before the mark it says that the sandbox failed


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
    """Compile the program, or take what an earlier run of it compiled; what does not compile ends here.

    Returns the code, and whether its globals must be finalised.
    """
    try:
        compiled = _read_all(code_fd)
        if compiled:
            return marshal.loads(memoryview(compiled)[1:]), compiled.startswith(WITH_LAST_WORDS)
        source = _read_all(source_fd)
        code = compile(source, "main.py", "exec", dont_inherit=True)
    except BaseException:  # noqa: BLE001 - the parser meets hostile text: any failure is the program's
        os.write(cell.marks_fd, MARK_NOT_COMPILED)
        _exit(1)
    has_last_words = any(word in source for word in LAST_WORDS)
    if request.num_runs > 1:
        with contextlib.suppress(ValueError):  # nested too deep to be stored: the other runs compile it again
            os.pwrite(code_fd, (WITH_LAST_WORDS if has_last_words else PLAIN) + marshal.dumps(code), 0)
    return code, has_last_words


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


def _fresh_main(names: dict[str, Any]) -> None:
    """Put an empty main module in place; nothing else may hold it, or its globals would never be finalised."""
    main = ModuleType("__main__")
    main.__dict__.update(names, __file__="main.py", __builtins__=builtins)
    sys.modules["__main__"] = main


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
    if not isinstance(code, int):
        return 1
    return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF  # as the interpreter, which makes it a C long


def _end(status: int, original_builtins: dict[str, Any] | None) -> NoReturn:
    """End as the interpreter does: streams, threads, exit handlers, streams, finalisers (None: none), streams."""
    if original_builtins is None and _has_nothing_but_stdout():
        _exit(status if _flush(sys.stdout) else NOT_FLUSHED_STATUS)
    for step in (_flush_streams, _join_threads, atexit._run_exitfuncs):
        with contextlib.suppress(BaseException):  # the interpreter reports it and continues
            step()
    is_flushed = _flush_streams()
    with contextlib.suppress(BaseException):
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        if original_builtins is not None:
            _finalise_main(original_builtins)
    is_flushed = _flush_streams() and is_flushed
    _exit(status if is_flushed else NOT_FLUSHED_STATUS)


def _has_nothing_but_stdout() -> bool:
    """Whether flushing the standard output is all that is left to do, as for most programs."""
    if getattr(sys, "stdout", None) is not sys.__stdout__ or getattr(sys, "stderr", None) is not sys.__stderr__:
        return False
    return "threading" not in sys.modules and not atexit._ncallbacks()


def _join_threads() -> None:
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def _flush_streams() -> bool:
    """Flush the standard streams as they are called at this moment; whether what was printed got out."""
    is_flushed = _flush(getattr(sys, "stdout", None))
    _flush(getattr(sys, "stderr", None))
    return is_flushed


def _flush(stream: Any) -> bool:
    is_closed = False
    with contextlib.suppress(BaseException):  # streams are the program's, and may lack the attribute
        is_closed = stream is None or bool(stream.closed)
    try:
        if not is_closed:
            stream.flush()
    except BaseException:  # noqa: BLE001 - whatever the stream raises
        return False
    return True


def _finalise_main(original_builtins: dict[str, Any]) -> None:
    """Let go of the program's globals: objects that buffer output, generators and `__del__` write their last words.

    In the interpreter's order: the original built-in names come back, the module goes, cycles are collected while
    finalisers still see the globals, and a module that something else holds is emptied. The collection before all that
    brings objects into an order in which the second one closes a buffer before the file below it.
    """
    if gc.isenabled():
        gc.collect()
    builtins.__dict__.clear()
    builtins.__dict__.update(original_builtins)
    survivor = weakref.ref(sys.modules.pop("__main__"))
    gc.collect()
    main = survivor()
    if main is not None:
        names = sorted(main.__dict__, key=lambda name: not name.startswith("_"))
        main.__dict__.update(dict.fromkeys(name for name in names if name != "__builtins__"))
