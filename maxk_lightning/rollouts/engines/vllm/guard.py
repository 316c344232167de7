"""Run a command and end it, with all that it started, when the process that asked for it is gone.

A script, started by path: `guard.py PARENT_PID COMMAND...`; standard library only. It polls its parent: a kill -9 gives
no notice, and the kernel's parent-death signal follows the thread that forked, not the process.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

POLL_S = 0.2
GRACE_S = 5.0
"Seconds from SIGTERM to SIGKILL."


def main(parent: int, command: list[str]) -> int:
    """Return the command's exit status, or 1 when it had to be ended."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        signal.signal(signal.SIGTERM, _exit)
        while child.poll() is None and os.getppid() == parent:
            time.sleep(POLL_S)
    finally:
        _end_session(child)
    return child.returncode


def _end_session(child: "subprocess.Popen[bytes]") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second also for children that outlived their parent
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
