"""What pool and fork server say to each other over a SOCK_SEQPACKET pair.

A request asks for one program and up to `MAX_RUNS_PER_REQUEST` runs of it; its descriptors are the program's source, an
empty memory file for the compiled code, then per run standard input and standard output (and, for a checker, expected
and actual output). The reply holds one `Outcome` per run. Descriptors keep program text out of the server's memory.
"""

import struct
from dataclasses import dataclass
from typing import Literal, get_args

MAX_RUNS_PER_REQUEST = 32
"Four descriptors each stay below the kernel's 253 per message."

Mode = Literal["program", "call", "checker", "headed_program", "headed_call", "literal_call"]
"""Standard input and output; a function call with JSON values; a checker reading three files; the first two with the
names of LiveCodeBench's header; a function call with Python literals."""
MODES: tuple[Mode, ...] = get_args(Mode)

OutcomeKind = Literal["exited", "signalled", "cpu_limit", "wall_limit", "output_limit", "internal"]
KINDS: tuple[OutcomeKind, ...] = (
    "exited",
    "signalled",
    "cpu_limit",
    "wall_limit",
    "output_limit",
    "internal",
)

LIMIT_HITS: tuple[OutcomeKind, ...] = ("cpu_limit", "wall_limit", "output_limit")
"Ends that a looping program meets."
MEMORY_EXIT_STATUS = 86
"Exit status for an uncaught MemoryError. A program may forge it: it earns a failed test either way."

MAX_SECONDS = 1e8
MAX_BYTES = 1 << 50
MAX_COUNT = (1 << 32) - 1
"Limits above these are no limits, and go over the wire as these."

READY = b"ready"
"A server's first message."

_REQUEST = struct.Struct("=QBBIddQQ")
_OUTCOME = struct.Struct("=BiddQ")
_REPLY = struct.Struct("=Q")
MAX_FUNCTION_BYTES = 1 << 16
"Longest name of a function, in UTF-8."
MAX_REQUEST_BYTES = _REQUEST.size + MAX_FUNCTION_BYTES
MAX_REPLY_BYTES = _REPLY.size + MAX_RUNS_PER_REQUEST * _OUTCOME.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use."""

    cpu_s: float
    "CPU seconds of the process, all threads together."
    wall_s: float
    "Seconds by the clock: a backstop for programs that sleep."
    memory_bytes: int
    "Address space."
    output_bytes: int
    "Largest standard output."


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One program and how to run it."""

    id: int
    "Chosen by the pool, repeated in the reply."
    mode: Mode
    "How the program is called."
    num_runs: int
    "Runs wanted; as many standard inputs and outputs come along."
    max_limit_hits: int
    "Runs that may end by a time or output limit before the others are skipped; 0: no such rule."
    limits: Limits
    "Per run."
    function: str = ""
    "Name of the function in the modes that call."

    def pack(self) -> bytes:
        """Encode for the wire; limits that no machine can reach become the largest that the kernel can count."""
        limits = self.limits
        seconds = (min(limits.cpu_s, MAX_SECONDS), min(limits.wall_s, MAX_SECONDS))
        sizes = (min(limits.memory_bytes, MAX_BYTES), min(limits.output_bytes, MAX_BYTES))
        max_limit_hits = min(self.max_limit_hits, MAX_COUNT)
        head = _REQUEST.pack(self.id, MODES.index(self.mode), self.num_runs, max_limit_hits, *seconds, *sizes)
        return head + self.function.encode("utf-8", "surrogatepass")

    @classmethod
    def unpack(cls, message: bytes) -> "Request":
        """Decode from the wire."""
        id_, mode, num_runs, max_limit_hits, cpu_s, wall_s, memory_bytes, output_bytes = _REQUEST.unpack_from(message)
        return cls(
            id=id_,
            mode=MODES[mode],
            num_runs=num_runs,
            max_limit_hits=max_limit_hits,
            limits=Limits(cpu_s=cpu_s, wall_s=wall_s, memory_bytes=memory_bytes, output_bytes=output_bytes),
            function=message[_REQUEST.size :].decode("utf-8", "surrogatepass"),
        )

    @property
    def num_fds_per_run(self) -> int:
        """Input and output; for a checker also expected and actual output."""
        return 4 if self.mode == "checker" else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run ended, as the fork server saw it."""

    kind: OutcomeKind
    "`internal`: the sandbox failed before the program ran, or something outside killed it (status SIGKILL)."
    status: int = 0
    "Exit status or signal number."
    cpu_s: float = 0.0
    "CPU seconds used."
    wall_s: float = 0.0
    "Seconds by the clock."
    max_rss_bytes: int = 0
    "Largest resident memory."


def pack_reply(request_id: int, outcomes: list[Outcome]) -> bytes:
    """Encode a reply."""
    packed = [_OUTCOME.pack(KINDS.index(o.kind), o.status, o.cpu_s, o.wall_s, o.max_rss_bytes) for o in outcomes]
    return _REPLY.pack(request_id) + b"".join(packed)


def unpack_reply(message: bytes) -> tuple[int, list[Outcome]]:
    """Decode a reply into the request's id and the outcomes."""
    (request_id,) = _REPLY.unpack_from(message)
    outcomes = [
        Outcome(kind=KINDS[kind], status=status, cpu_s=cpu_s, wall_s=wall_s, max_rss_bytes=max_rss_bytes)
        for kind, status, cpu_s, wall_s, max_rss_bytes in _OUTCOME.iter_unpack(message[_REPLY.size :])
    ]
    return request_id, outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What the pool sends a server at its start."""

    readable: tuple[str, ...]
    "Paths programs may read below."
    extra_path: tuple[str, ...]
    "Appended to `sys.path` of the programs."
    unprivileged_uid: int
    "User to become when started as root, where that user can read the interpreter."
    is_alone_in_user: bool
    "Whether no other process counts against this user's process limit (a user namespace, or an unused uid)."
    needs_landlock: bool
    "Refuse to start without landlock."
    needs_seccomp: bool
    "Refuse to start without seccomp."
    warm_up: str = ""
    "Python source that the server runs once, so that programs find in memory what it imports. Ours, never a program's."
