"""How programs end: output and exit status are those of a plain interpreter, which runs the same programs here."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxk_lightning.rewards.sandbox.jobs import Job, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome
from maxk_lightning.rewards.sandbox.worker import WorkerSettings

LIMITS = Limits(cpu_s=5.0, wall_s=50.0, memory_bytes=1 << 30, output_bytes=1 << 20)

FAST_IO = """
import os, sys
from io import BytesIO, IOBase
class FastIO(IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
"""
FILE_OF_MINE = """
import sys
class File:
    closed = property(lambda self: {closed})
    def write(self, text): pass
    def flush(self): {flush}
sys.stdout = File()
print("x")
"""
CLASS_WITH_DEL = (
    "class A:\n    def __init__(self, name): self.name = name\n    def __del__(self): print('end of', self.name)\n"
)

PROGRAMS = {
    "plain": "print('x')",
    "no newline": "print('x', end='')",
    "with stdout": "import sys\nwith sys.stdout as o: print('x', file=o)",
    "closed stdout": "import sys\nprint('x')\nsys.stdout.close()",
    "print to closed stdout": "import sys\nprint('x')\nsys.stdout.close()\nprint('y')",
    "quit": "print('x')\nquit()",
    "exit in the middle": "print('x')\nexit(0)\nprint('y')",
    "stdout is None": "import sys\nprint('x')\nsys.stdout = None",
    "stdout is deleted": "import sys\nprint('x')\ndel sys.stdout",
    "stdout is a number": "import sys\nprint('x')\nsys.stdout = 5",
    "stdout replaced by text": "import io, sys\nprint('x')\nsys.stdout = io.StringIO()\nprint('lost')",
    "written to the original": "import io, sys\nsys.stdout = io.StringIO()\nsys.__stdout__.write('x')",
    "collected, then written": (
        "import io, sys, atexit\nout = sys.stdout = io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(out.getvalue()))\nprint('x')"
    ),
    "os.write and print": "import os\nprint('x')\nos.write(1, b'y')",
    "open(1)": "f = open(1, 'w')\nf.write('x')",
    "open(1) after print": "print('x')\nf = open(1, 'w')\nf.write('y')",
    "open(1) in a function": "def main():\n    f = open(1, 'w')\n    f.write('x')\nmain()",
    "open(1) kept by a function": "f = open(1, 'w')\ndef out(s): f.write(s)\nout('x')\nout('y')",
    "open(1) without closing it": "f = open(1, 'w', closefd=False)\nf.write('x')\nprint('y')",
    "open(1) binary": "f = open(1, 'wb')\nf.write(b'x')",
    "open(1), then an error": "f = open(1, 'w')\nf.write('x')\nraise ValueError",
    "open(1), then exit": "import sys\nf = open(1, 'w')\nf.write('x')\nsys.exit(3)",
    "fdopen": "import os\nf = os.fdopen(1, 'w')\nf.write('x')",
    "fdopen as print": "import os, functools\nprint = functools.partial(print, file=os.fdopen(1, 'w'))\nprint('x')",
    "stdout is fdopen": "import os, sys\nsys.stdout = os.fdopen(1, 'w', 65536)\nprint('x')",
    "buffered writer": "import io\nf = io.BufferedWriter(io.FileIO(1, 'w'))\nf.write(b'x')",
    "text wrapper over the buffer": "import io, sys\nf = io.TextIOWrapper(sys.stdout.buffer)\nf.write('x')",
    "stdout is a text wrapper": (
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'latin-1')\nprint('ü')"
    ),
    "detached": "import sys\nb = sys.stdout.detach()\nb.write(b'x')",
    "detached and dropped": "import sys\nsys.stdout.detach().write(b'x')",
    "buffer written": "import sys\nsys.stdout.buffer.write(b'x')\nprint('y')",
    "dup": "import os, sys\nf = open(os.dup(1), 'w')\nf.write('x')\nprint('y')",
    "fast io": FAST_IO + "sys.stdout = IOWrapper(sys.stdout)\nprint = lambda s: sys.stdout.write(str(s))\nprint('x')",
    "fast io never flushed": FAST_IO + "out = FastIO(sys.stdout)\nout.write(b'x')",
    "fast io in builtins": FAST_IO
    + "import builtins\nout = IOWrapper(sys.stdout)\nbuiltins.print = out.write\nprint('x')",
    "redirect": "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): print('x')\nprint('y')",
    "redirect left open": "import contextlib, io\ncontextlib.redirect_stdout(io.StringIO()).__enter__()\nprint('x')",
    "del of a global": CLASS_WITH_DEL + "a = A('a')\nb = A('b')\nprint('x')",
    "del of a cycle": CLASS_WITH_DEL + "a = A('a')\na.self = a\nprint('x')",
    "del uses a global": "word = 'x'\nclass A:\n    def __del__(self): print(word)\na = A()",
    "del that fails": "class A:\n    def __del__(self): print('x'); 1 / 0\na = A()",
    "del after an error": CLASS_WITH_DEL + "a = A('a')\nraise ValueError",
    "main imports itself": CLASS_WITH_DEL + "import __main__\na = A('a')",
    "main kept by a library": CLASS_WITH_DEL + "import sys, string\nstring.main = sys.modules['__main__']\na = A('a')",
    "function kept by builtins": CLASS_WITH_DEL + "import builtins\nbuiltins.f = lambda: a\na = A('a')",
    "generator suspended": "def g():\n    try: yield 1\n    finally: print('x')\nit = g()\nnext(it)",
    "context left open": (
        "import contextlib\n@contextlib.contextmanager\ndef c():\n    try: yield\n    finally: print('x')\n"
        "m = c()\nm.__enter__()"
    ),
    "weakref.finalize": "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'x')",
    "atexit": "import atexit\natexit.register(print, 'x')\nprint('y')",
    "atexit that fails": "import atexit\natexit.register(print, 'x')\natexit.register(lambda: 1 / 0)\nprint('y')",
    "atexit that exits": "import atexit, sys\natexit.register(sys.exit, 3)\nprint('y')",
    "atexit after an error": "import atexit\natexit.register(print, 'x')\nraise ValueError",
    "atexit in a function of main": "import atexit\n@atexit.register\ndef bye(): print(word)\nword = 'x'",
    "thread": (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('x'))).start()\nprint('y')"
    ),
    "thread that fails": "import threading\nthreading.Thread(target=lambda: 1 / 0).start()\nprint('y')",
    "thread that exits": "import threading, sys\nthreading.Thread(target=sys.exit, args=(3,)).start()\nprint('y')",
    "exit 0": "import sys\nprint('x')\nsys.exit(0)",
    "exit True": "import sys\nsys.exit(True)",
    "exit with text": "import sys\nprint('x')\nsys.exit('y')",
    "exit 256": "import sys\nsys.exit(256)",
    "exit -1": "import sys\nsys.exit(-1)",
    "exit 2**70": "import sys\nsys.exit(1 << 70)",
    "exit -2**31": "import sys\nsys.exit(-(1 << 31))",
    "exit 0.0": "import sys\nsys.exit(0.0)",
    "os._exit loses the buffer": "import os\nprint('x')\nos._exit(0)",
    "abort": "import os\nos.abort()",
    "flush that fails": FILE_OF_MINE.format(closed="False", flush="1 / 0"),
    "closed that fails": FILE_OF_MINE.format(closed="1 / 0", flush="sys.__stdout__.write('x')"),
    "closed by its own word": FILE_OF_MINE.format(closed="True", flush="1 / 0"),
    "flush twice": FILE_OF_MINE.format(closed="False", flush="sys.__stdout__.write('x')"),
    "stderr is stdout": "import sys\nsys.stderr = open(1, 'w', closefd=False)\nprint('x', file=sys.stderr)",
    "descriptor closed": "import os\nprint('x')\nos.close(1)",
    "descriptor closed, nothing printed": "import os\nos.close(1)",
    "surrogates": "print('\\ud800')",
    "recursion": "def f(n): return f(n + 1)\nf(0)",
    "os._exit replaced": "import os\nprint('x')\nos._exit = lambda status: None",
    "modules cleared": "import sys\nprint('x')\nsys.modules.clear()",
    "gc off": "import gc\nclass A:\n    def __del__(self): print('x')\na = A()\na.self = a\ngc.disable()\ndel a",
}


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    pool = SandboxPool(WorkerSettings(backend="plain"), num_workers=1)
    yield pool
    pool.close()


def in_the_sandbox(pool: SandboxPool, program: str) -> tuple[bytes, int]:
    def judge(_: int, outcome: Outcome, output: bytes) -> tuple[bytes, int]:
        return output, outcome.status if outcome.kind == "exited" else -outcome.status

    [result] = pool.submit(
        Job(source=program.encode(), runs=[RunFiles(stdin=b"")], judge=judge, limits=LIMITS)
    ).result()
    return result  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PROGRAMS)
def test_output_and_status_are_the_interpreters(name: str, pool: SandboxPool, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PROGRAMS[name])
    with open(tmp_path / "out", "wb") as file:
        command = [sys.executable, "-X", "utf8", "-W", "ignore", "main.py"]
        native = subprocess.run(
            command, stdout=file, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=tmp_path, env={}
        )
    assert in_the_sandbox(pool, PROGRAMS[name]) == ((tmp_path / "out").read_bytes(), native.returncode)
