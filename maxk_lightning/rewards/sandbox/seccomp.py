"""Build the seccomp filters (classic BPF) that decide which system calls a program may make.

Two filters stack, because installing one costs time in proportion to its length: the long *outer* one is installed once
in the server and inherited; the short *inner* one is installed in every child and takes away what the server itself
needs. A call not on the list fails with ENOSYS, so that the C library falls back as on an old kernel.
"""

import errno
import struct
from collections.abc import Iterable, Sequence

from maxk_lightning.rewards.sandbox.syscalls import ALWAYS_ALLOWED, AUDIT_ARCH, numbers_of

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
_NR, _ARCH = 0, 4


def _low(arg: int) -> int:
    return 16 + 8 * arg


def _high(arg: int) -> int:
    return 20 + 8 * arg


LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

OPEN_WRITES = 0o3 | 0o100 | 0o1000 | 0o20000000
"O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE's own bit."
CLONE_THREAD = 0x00010000
CLONE_FORBIDDEN = 0x00000080 | 0x00001000 | 0x00002000 | 0x00004000 | 0x00008000 | 0x00020000 | 0x7E000000
"New time namespace, pidfd, ptrace, vfork, parent, new mount namespace, the other namespaces."
MSG_OOB = 1
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."
FCNTLS = (0, 1, 2, 3, 4, 1030, 1032, 1034)
"Duplicate, flags, pipe size and seals; not F_SETOWN and F_SETSIG, which send signals, nor locks, which others see."
PRCTLS = (3, 15, 16, 23, 39, 0x53564D41)
"Get dumpable, set and get the thread's name, read the bounding set, get no_new_privs, name a mapping."
SIGKILL = 9
RLIMIT_CPU = 0
LAST_CLOCK = 15
"Clocks with higher (as the kernel sees it, negative) numbers are those of processes, anybody's."
CLOCK_CALLS = ("clock_gettime", "clock_getres", "clock_nanosleep")
PROCESS_CALLS = (
    *("getpgid", "getsid", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_getaffinity"),
)
"Calls that reveal something about the process whose number is the first argument."


def _return(action: int) -> Instruction:
    return (RETURN, 0, 0, action)


def _fail(code: int) -> Instruction:
    return _return(ERRNO | code)


def _section(number: int, body: Sequence[Instruction]) -> list[Instruction]:
    """Run `body`, which must return, for one system call; its number is in the accumulator before and after."""
    return [(JUMP_EQUAL, 0, len(body), number), *body]


def _shared_section(numbers: Sequence[int], body: Sequence[Instruction]) -> list[Instruction]:
    """Run `body`, which must return, for any of several system calls."""
    last = len(numbers) - 1
    tests: list[Instruction] = [(JUMP_EQUAL, last - i, 0, number) for i, number in enumerate(numbers[:-1])]
    return [*tests, (JUMP_EQUAL, 0, len(body), numbers[-1]), *body]


def _allow_if_clear(arg: int, bits: int, otherwise: int) -> list[Instruction]:
    return [(LOAD, 0, 0, _low(arg)), (JUMP_ANY_BIT, 0, 1, bits), _fail(otherwise), _return(ALLOW)]


def _allow_if_one_of(arg: int, values: Iterable[int], otherwise: int) -> list[Instruction]:
    """Compare the low word only: these arguments are ints in the kernel."""
    allowed = list(values)
    tests: list[Instruction] = [(JUMP_EQUAL, len(allowed) - i, 0, value) for i, value in enumerate(allowed)]
    return [(LOAD, 0, 0, _low(arg)), *tests, _fail(otherwise), _return(ALLOW)]


def _allow_numbers(numbers: Sequence[int]) -> list[Instruction]:
    instructions: list[Instruction] = []
    for start in range(0, len(numbers), 200):  # a jump reaches 255 instructions
        chunk = numbers[start : start + 200]
        instructions += [(JUMP_EQUAL, len(chunk) - i, 0, number) for i, number in enumerate(chunk)]
        instructions += [(0x05, 0, 0, 1), _return(ALLOW)]  # jump over the return
    return instructions


def _check_machine(machine: str) -> list[Instruction]:
    return [
        (LOAD, 0, 0, _ARCH),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        _return(KILL_PROCESS),
        (LOAD, 0, 0, _NR),
    ]


def outer_filter(machine: str) -> bytes:
    """The allow-list of server and programs: no file is written, no socket reaches out, nothing new is executed."""
    nr = numbers_of(machine)
    instructions = _check_machine(machine)
    for name, flags_arg in (("open", 1), ("openat", 2)):
        if name in nr:
            instructions += _section(nr[name], _allow_if_clear(flags_arg, OPEN_WRITES, errno.EACCES))
    for name, flags_arg in (("sendto", 3), ("sendmsg", 2), ("recvfrom", 3), ("recvmsg", 2)):
        instructions += _section(nr[name], _allow_if_clear(flags_arg, MSG_OOB, errno.EOPNOTSUPP))
    instructions += _section(nr["ioctl"], _allow_if_one_of(1, IOCTLS, errno.ENOTTY))
    instructions += _section(nr["fcntl"], _allow_if_one_of(1, FCNTLS, errno.EPERM))
    instructions += _section(nr["socketpair"], _stream_pairs_only())
    server_calls = ("clone", "prctl", "prlimit64", "kill", "tgkill", "seccomp", "landlock_restrict_self", "pidfd_open")
    instructions += _allow_numbers([nr[name] for name in (*ALWAYS_ALLOWED.split(), *server_calls) if name in nr])
    return _assemble([*instructions, _fail(errno.ENOSYS)])


def _stream_pairs_only() -> list[Instruction]:
    """AF_UNIX stream pairs, which asyncio needs; a datagram pair could send to any named socket."""
    return [
        (LOAD, 0, 0, _low(0)),
        (JUMP_EQUAL, 0, 3, 1),
        (LOAD, 0, 0, _low(1)),
        (AND, 0, 0, 0xFF),
        (JUMP_EQUAL, 1, 0, 1),
        _fail(errno.EAFNOSUPPORT),
        _return(ALLOW),
    ]


def inner_filter(machine: str, pid: int) -> bytes:
    """What a child gives up on top: processes (threads stay), signals to others, others' limits, undoing the hardening.

    SIGKILL is refused even to itself, and so is a limit of CPU time, at which the kernel would send it: a child that
    dies by it was killed from outside, which no program can forge.
    """
    nr = numbers_of(machine)
    instructions: list[Instruction] = [(LOAD, 0, 0, _NR)]
    instructions += _section(nr["clone"], _threads_only())
    for name, signal_arg in (("kill", 1), ("tgkill", 2)):
        instructions += _section(nr[name], _signals_to(pid, signal_arg))
    instructions += _section(nr["prctl"], _allow_if_one_of(0, PRCTLS, errno.EPERM))
    instructions += _section(nr["prlimit64"], _own_limits_but_cpu(pid))
    instructions += _section(nr["setrlimit"], [(LOAD, 0, 0, _low(0)), *_refuse_if(RLIMIT_CPU, errno.EPERM)])
    instructions += _shared_section([nr[name] for name in CLOCK_CALLS], _clocks_of_nobody())
    instructions += _shared_section([nr[name] for name in PROCESS_CALLS], _allow_if_one_of(0, (0, pid), errno.ESRCH))
    instructions += _section(nr["getpriority"], _own_priority(pid))
    for name in ("seccomp", "landlock_restrict_self", "pidfd_open"):
        instructions += _section(nr[name], [_fail(errno.EPERM)])
    return _assemble([*instructions, _return(ALLOW)])


def _threads_only() -> list[Instruction]:
    return [
        (LOAD, 0, 0, _low(0)),
        (JUMP_ANY_BIT, 0, 1, CLONE_THREAD),
        (JUMP_ANY_BIT, 0, 1, CLONE_FORBIDDEN),
        _fail(errno.EPERM),
        _return(ALLOW),
    ]


def _refuse_if(value: int, error: int) -> list[Instruction]:
    return [(JUMP_EQUAL, 0, 1, value), _fail(error), _return(ALLOW)]


def _own_limits_but_cpu(pid: int) -> list[Instruction]:
    """Of this process alone; that of CPU time can be read, which is what a null pointer to a new value means."""
    return [
        (LOAD, 0, 0, _low(0)),
        (JUMP_EQUAL, 2, 0, 0),
        (JUMP_EQUAL, 1, 0, pid),
        _fail(errno.EPERM),
        (LOAD, 0, 0, _low(1)),
        (JUMP_EQUAL, 0, 5, RLIMIT_CPU),
        (LOAD, 0, 0, _low(2)),
        (JUMP_EQUAL, 0, 2, 0),
        (LOAD, 0, 0, _high(2)),
        (JUMP_EQUAL, 1, 0, 0),
        _fail(errno.EPERM),
        _return(ALLOW),
    ]


def _clocks_of_nobody() -> list[Instruction]:
    return [(LOAD, 0, 0, _low(0)), (JUMP_GREATER, 0, 1, LAST_CLOCK), _fail(errno.EINVAL), _return(ALLOW)]


def _own_priority(pid: int) -> list[Instruction]:
    """Of this process, not of groups and users."""
    return [
        (LOAD, 0, 0, _low(0)),
        (JUMP_EQUAL, 0, 3, 0),
        (LOAD, 0, 0, _low(1)),
        (JUMP_EQUAL, 2, 0, 0),
        (JUMP_EQUAL, 1, 0, pid),
        _fail(errno.ESRCH),
        _return(ALLOW),
    ]


def _signals_to(pid: int, signal_arg: int) -> list[Instruction]:
    return [
        (LOAD, 0, 0, _low(0)),
        (JUMP_EQUAL, 0, 2, pid),
        (LOAD, 0, 0, _low(signal_arg)),
        (JUMP_EQUAL, 0, 1, SIGKILL),
        _fail(errno.EPERM),
        _return(ALLOW),
    ]


def _assemble(instructions: Sequence[Instruction]) -> bytes:
    assert len(instructions) <= 4096, "BPF_MAXINSNS"
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
