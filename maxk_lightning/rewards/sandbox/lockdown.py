"""System calls that take rights away from the calling process, through ctypes. Linux only; standard library only."""

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Iterable, Sequence

from maxk_lightning.rewards.sandbox.syscalls import MACHINE, numbers_of

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP = 1, 4, 8, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 47
SIGKILL = 9
SECCOMP_SET_MODE_FILTER = 1
CAPABILITY_VERSION_3 = 0x20080522
LAST_CAPABILITY = 63
CAP_DAC_READ_SEARCH = 2
LAST_FD = 0x7FFFFFFF

# Landlock: rights per ABI version, from the kernel's include/uapi/linux/landlock.h.
LANDLOCK_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF, 6: 0xFFFF}
LANDLOCK_TCP_RIGHTS = {4: 0x3, 5: 0x3, 6: 0x3}
LANDLOCK_SCOPES = {6: 0x3}
LANDLOCK_READ_FILE, LANDLOCK_READ_DIRECTORY = 1 << 2, 1 << 3
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_VERSION_FLAG = 1

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_numbers = numbers_of(MACHINE)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int = 0) -> None:
    """Call prctl(2) with one argument; OSError when refused."""
    _checked(
        _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl"
    )


def close_from(first_fd: int) -> None:
    """Close every descriptor from this one on, whatever its number; OSError when the kernel can not (before 5.9)."""
    number = _numbers["close_range"]
    if _syscall(number, first_fd, LAST_FD, 0):
        _checked(-1, "close_range")


def die_with_parent() -> None:
    """Ask to be killed when the parent dies."""
    if _libc.prctl(PR_SET_PDEATHSIG, SIGKILL):
        _checked(-1, "prctl(PR_SET_PDEATHSIG)")


class SeccompFilter:
    """A filter ready to be installed; building it once keeps children fast."""

    def __init__(self, instructions: bytes) -> None:
        self.buffer = ctypes.create_string_buffer(instructions, len(instructions))
        length = len(instructions) // 8
        self._program = ctypes.create_string_buffer(struct.pack("@HP", length, ctypes.addressof(self.buffer)))

    def install(self) -> None:
        """Stack the filter on the calling process; needs no_new_privs or root."""
        result = _syscall(_numbers["seccomp"], SECCOMP_SET_MODE_FILTER, 0, self._program)
        _checked(result, "seccomp")


def landlock_version() -> int:
    """The ABI version the kernel announces; 0 without landlock."""
    version = _syscall(_numbers["landlock_create_ruleset"], None, ctypes.c_size_t(0), LANDLOCK_VERSION_FLAG)
    return max(0, int(version))


def landlock_ruleset(readable: Iterable[str]) -> int:
    """A ruleset descriptor that allows nothing but reading below the given paths; missing paths are left out.

    Raises:
        OSError: when the kernel has no landlock.
    """
    ruleset = _create_ruleset(landlock_version())
    for path in readable:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            continue
        try:
            rights = LANDLOCK_READ_FILE | (LANDLOCK_READ_DIRECTORY if os.path.isdir(path) else 0)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd))
            number = _numbers["landlock_add_rule"]
            _checked(_syscall(number, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0), "landlock_add_rule")
        finally:
            os.close(fd)
    return ruleset


def _create_ruleset(version: int) -> int:
    """Ask for all rights of the announced version; distribution kernels announce more than they know, so step down."""
    if version < 1:
        raise OSError(errno.ENOSYS, "landlock is missing from this kernel or switched off")
    for abi in range(min(version, 6), 0, -1):
        words = (LANDLOCK_FILE_RIGHTS[abi], LANDLOCK_TCP_RIGHTS.get(abi, 0), LANDLOCK_SCOPES.get(abi, 0))
        size = 8 * (3 if abi >= 6 else 2 if abi >= 4 else 1)
        attributes = ctypes.create_string_buffer(struct.pack("=QQQ", *words))
        fd = _syscall(_numbers["landlock_create_ruleset"], attributes, ctypes.c_size_t(size), 0)
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (errno.EINVAL, errno.E2BIG):
            break
    return _checked(-1, "landlock_create_ruleset")


def landlock_restrict(ruleset: int) -> None:
    """Enter a fresh landlock domain; OSError when refused."""
    _checked(_syscall(_numbers["landlock_restrict_self"], ruleset, 0), "landlock_restrict_self")


def has_capabilities(wanted: Iterable[int]) -> bool:
    """Whether they are permitted to this process; those with numbers below 32."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    sets = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, sets), "capget")
    _, permitted, *_ = struct.unpack("=6I", sets.raw)
    return all(permitted >> capability & 1 for capability in wanted)


def drop_capabilities(*, keep: Sequence[int] = ()) -> None:
    """Empty every set but for what is kept (numbers below 32); the bounding set only as root."""
    for capability in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # fails past the kernel's last one
    _libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(4), 0, 0, 0)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    kept = sum(1 << capability for capability in keep)
    sets = struct.pack("=6I", kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable: low words, then high words
    _checked(_libc.capset(header, ctypes.create_string_buffer(sets, 24)), "capset")


def set_hard_limit(which: int, value: int) -> None:
    """Set soft and hard limit, never above the hard limit in force."""
    _, hard = resource.getrlimit(which)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (limit, limit))


def set_default_thread_stack(num_bytes: int) -> None:
    """Give new threads this stack unless the program asks otherwise.

    The C library's default is RLIMIT_STACK at start, which is large here for deep recursion and would let a
    handful of threads use up the address space. Without the (GNU) call the default stays.
    """
    setter = getattr(_libc, "pthread_setattr_default_np", None)
    if setter is not None:
        attributes = ctypes.create_string_buffer(128)  # pthread_attr_t is 56 or 64 bytes
        _libc.pthread_attr_init(attributes)
        _libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(num_bytes))
        setter(attributes)
