"""Training commands in processes of their own, which a test may kill, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.paths import ROOT

FIT = (sys.executable, "-m", "maxk_lightning", "fit")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def listen_to_interrupts() -> None:
    """Undo what a shell does to background jobs: it makes them, and all their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Run:
    """`fit` with these options, started as often as a test likes in one directory."""

    root: Path
    options: str

    def start(self, *args: str) -> "subprocess.Popen[bytes]":
        """Start the command, as the leader of a group of processes that can be killed together."""
        command = [*FIT, *self.options.split(), "--trainer.default_root_dir", str(self.root), *args]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes)

    def finish(self, *args: str) -> "Run":
        """Run the command to its end."""
        process = self.start(*args)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-3000:]
        return self

    def start_and_kill(self, *args: str, delay_s: float = 0.0) -> "Run":
        """SIGKILL all processes some time after they wrote a checkpoint newer than any they started with."""
        last, process = self.checkpoint("last"), self.start(*args)
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(delay_s)
        assert process.poll() is None, (process.communicate()[1] or b"").decode()[-3000:] or "it ended before the kill"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return self

    def checkpoint(self, name: str) -> Path:
        """A checkpoint of the run."""
        return self.root / "checkpoints" / f"{name}.ckpt"


def scalars(root: Path) -> dict[str, dict[int, float]]:
    """Every logged scalar by tag and step; a step logged twice must have been logged alike.

    Without those of the clock, and without the self-test of a weight sync: a resumed run has to push weights that the
    undisturbed one had pushed for a validation, whose prompts the test then sampled from.
    """
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in accumulator.Tags()["scalars"]:
        if not tag.startswith("time/") and tag not in ("rollout/logprob_gap", "rollout/sequence_gap"):
            for event in accumulator.Scalars(tag):
                assert found.setdefault(tag, {}).setdefault(event.step, event.value) == event.value, tag
    return found


def assert_same(a: Any, b: Any, where: str) -> None:
    """Two parts of checkpoints are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where
