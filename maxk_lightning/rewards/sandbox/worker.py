"""Start one fork server in a new interpreter and talk to it. Never forks the calling process."""

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from maxk_lightning.rewards.sandbox.protocol import (
    MAX_REPLY_BYTES,
    READY,
    Outcome,
    Request,
    ServerConfig,
    unpack_reply,
)

Backend = Literal["bwrap", "plain"]

PACKAGE = Path(__file__).resolve().parents[2]
BOOTSTRAP = """
import os, sys, types
package = "/proc/self/fd/%d" % os.open(sys.argv.pop(), os.O_PATH)
for name in ("maxk_lightning", "maxk_lightning.rewards"):
    module = types.ModuleType(name)
    module.__path__ = [package + name.removeprefix("maxk_lightning").replace(".", "/")]
    sys.modules[name] = module
from maxk_lightning.rewards.sandbox.server import main
main()
"""
"""Imports the server alone: empty stand-ins keep the packages above it from being executed.

The package's own path, which a program could read from the frames below it, gives way to a descriptor's."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
SYSTEM_PATHS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
STOP_PATIENCE_S = 2.0
FIRST_UNUSED_UID, NUM_UNUSED_UIDS = 61184, 4336
"systemd's range for dynamic users: no account lives there."


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How workers are started."""

    backend: Backend
    "`bwrap` puts the same server into its own namespaces."
    has_site_packages: bool = False
    "Whether programs may import (and read) this interpreter's installed packages, such as numpy."
    needs_landlock: bool = True
    "Refuse to run without landlock."
    needs_seccomp: bool = True
    "Refuse to run without seccomp."
    packages: tuple[str, ...] = ()
    "Installed packages that programs may import (and read), without all the others."
    warm_up: str = ""
    "Python source that every worker runs once before its first program."


class WorkerLostError(Exception):
    """The worker's process or its socket is gone."""


class Worker:
    """One running fork server."""

    def __init__(self, settings: WorkerSettings, index: int) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.is_ready = False
        self.started_at = time.monotonic()
        owner_fd = os.pidfd_open(os.getpid())
        self._errors_fd = os.memfd_create("worker-errors")
        try:
            self.process = subprocess.Popen(
                _command(settings, index, theirs.fileno(), owner_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors_fd,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(theirs.fileno(), owner_fd),
                start_new_session=True,  # Ctrl-C is the owner's business
            )
        except OSError:
            self.socket.close()
            os.close(self._errors_fd)
            raise
        finally:
            theirs.close()
            os.close(owner_fd)

    def send(self, request: Request, fds: Sequence[int]) -> None:
        """Ask for runs; WorkerLostError when nobody listens."""
        try:
            socket.send_fds(self.socket, [request.pack()], fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerLostError(self.error_text()) from error

    def receive(self) -> tuple[int, list[Outcome]] | None:
        """One reply, or None for a sign of life or a false alarm; WorkerLostError at the end of the stream."""
        try:
            message = self.socket.recv(MAX_REPLY_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise WorkerLostError(self.error_text()) from error
        if not message:
            raise WorkerLostError(self.error_text())
        if message == READY:
            self.is_ready = True
            return None
        try:
            return unpack_reply(message)
        except (struct.error, IndexError) as error:
            raise WorkerLostError(f"process {self.process.pid} talks nonsense") from error

    def error_text(self) -> str:
        """The last line that the server wrote before it was ready or died."""
        lines = os.pread(self._errors_fd, 1 << 16, 0).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"worker process {self.process.pid} is gone"

    def stop(self) -> None:
        """End the server and everything it runs; wait until the processes are gone."""
        self.socket.close()
        try:
            self.process.wait(STOP_PATIENCE_S)  # it sees the end of its socket
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._errors_fd)


def _command(settings: WorkerSettings, index: int, control_fd: int, owner_fd: int) -> list[str]:
    site_packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) if settings.has_site_packages else ()
    extra_path = tuple(dict.fromkeys((*site_packages, *map(directory_of, settings.packages))))
    config = ServerConfig(
        readable=(*interpreter_paths(), *DEVICES, *extra_path),
        extra_path=extra_path,
        unprivileged_uid=FIRST_UNUSED_UID + (os.getpid() * 31 + index) % NUM_UNUSED_UIDS,
        is_alone_in_user=settings.backend == "bwrap",
        needs_landlock=settings.needs_landlock,
        needs_seccomp=settings.needs_seccomp,
        warm_up=settings.warm_up,
    )
    python = [os.path.realpath(sys.executable), "-s", "-P", "-S", "-X", "utf8", "-W", "ignore", "-c", BOOTSTRAP]
    command = [*python, str(control_fd), str(owner_fd), json.dumps(asdict(config)), str(PACKAGE)]
    return [*_namespaces(extra_path), *command] if settings.backend == "bwrap" else command


def directory_of(package: str) -> str:
    """Where a package is installed; ModuleNotFoundError where it is not."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return str(Path(spec.submodule_search_locations[0]).parent)


def interpreter_paths() -> tuple[str, ...]:
    """Where the standard library and the shared libraries of this interpreter lie."""
    own = (os.path.dirname(os.__file__), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    bases = (sys.base_prefix, sys.base_exec_prefix)
    inside = (path for path in own if path.startswith(bases))  # a virtual environment repeats the names elsewhere
    return tuple(dict.fromkeys(os.path.realpath(path) for path in (*inside, *SYSTEM_PATHS) if os.path.exists(path)))


def _namespaces(extra_path: Sequence[str]) -> list[str]:
    """Bubblewrap: own users, processes, network, mounts, host name; nothing in the file system but the interpreter."""
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--uid", str(FIRST_UNUSED_UID), "--gid", str(FIRST_UNUSED_UID)]
    command += ["--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--die-with-parent"]  # the parent is the thread that starts workers: the pool's, which outlives them
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):  # the loader's path is part of every executable
            command += ["--symlink", os.readlink(path), path]
    prefixes = (f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib", os.path.realpath(sys.executable))
    sources = (*interpreter_paths(), *prefixes, *extra_path, str(Path(__file__).parent))
    for path in dict.fromkeys(sources):
        command += ["--ro-bind-try", path, path]
    return [*command, "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/", "--chdir", "/", "--"]
