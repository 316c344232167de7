"""Training with the real vLLM through the command line: exact resume, ranks, a server that dies, no leftovers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.paths import ROOT
from tests.support.runs import listen_to_interrupts

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONFAULTHANDLER": "1"}
RUN = (
    f"{sys.executable} -m maxk_lightning fit --config configs/tiny_vllm.yaml --validate_before_fit false"
    " --trainer.check_val_every_n_epoch 99 --data.prompts_per_rollout 4 --trainer.enable_progress_bar false"
).split()
SERVER = """
rollout:
  engine:
    class_path: maxk_lightning.rollouts.VLLMServerEngine
    init_args:
      transfer: file
      server_args: {enforce-eager: true, max-model-len: 512, dtype: float32, kv-cache-memory-bytes: 134217728,
        distributed-executor-backend: uni}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts runs whose messages go to a file, and ends what a failed test leaves."""
    started = []

    def start(root: Path, *args: str) -> "subprocess.Popen[bytes]":
        root.mkdir(exist_ok=True)
        with (root / "messages").open("ab") as messages:
            command = [*RUN, "--trainer.default_root_dir", str(root), *args]
            process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT, stdout=messages, stderr=messages, preexec_fn=listen_to_interrupts
            )
        started.append((process, root))
        return process

    yield start
    for process, root in started:
        if process.poll() is None:
            process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread hangs
            process.wait()
            print(_messages(root)[-20_000:])


def _messages(root: Path) -> str:
    return (root / "messages").read_text(errors="replace")


def _wait_until(condition: Callable[[], object], process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the run has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _checkpoint(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def _scalars(root: Path, tag: str) -> list[float]:
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    return [event.value for event in accumulator.Scalars(tag)]


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_run_resumes_exactly_and_two_ranks_see_the_same_rollouts(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    whole, killed, ranks = tmp_path / "whole", tmp_path / "killed", tmp_path / "ranks"
    assert start(whole, "--trainer.max_epochs", "4").wait() == 0, _messages(whole)

    first = start(killed, "--trainer.max_epochs", "4")
    _wait_until((killed / "checkpoints" / "last.ckpt").exists, first, 200)
    first.kill()
    first.wait()
    assert start(killed, "--trainer.max_epochs", "4", "--ckpt_path", "last").wait() == 0, _messages(killed)
    for name, tensor in _checkpoint(whole)["state_dict"].items():
        assert torch.equal(_checkpoint(killed)["state_dict"][name], tensor), name
    assert _scalars(killed, "train/loss") == _scalars(whole, "train/loss")
    assert max(_scalars(whole, "rollout/logprob_gap")) < 1e-4
    assert _scalars(whole, "rollout/age") == [0.0] * 4

    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert start(ranks, "--trainer.max_epochs", "2", *two).wait() == 0, _messages(ranks)
    assert _scalars(ranks, "train/reward") == _scalars(whole, "train/reward")[:2]
    # float32 sums in another order, magnified by Adam's division by small second moments
    torch.testing.assert_close(_scalars(ranks, "train/loss"), _scalars(whole, "train/loss")[:6], atol=1e-4, rtol=1e-3)


def test_a_server_that_is_killed_is_replaced_and_none_outlives_the_run(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    config, root = tmp_path / "server.yaml", tmp_path / "run"
    config.write_text(SERVER)
    run = start(root, "--config", str(config), "--trainer.max_epochs", "200")
    checkpoint = root / "checkpoints" / "last.ckpt"
    _wait_until(checkpoint.exists, run, 500)
    server = [p for p in psutil.Process(run.pid).children(recursive=True) if "api_server" in " ".join(p.cmdline())]
    engine_processes = [p for parent in server for p in parent.children(recursive=True)]
    assert engine_processes
    for process in engine_processes:
        process.kill()
    _wait_until(lambda: "starting the rollout engine afresh" in _messages(root), run, 200)
    written = checkpoint.stat().st_mtime_ns
    _wait_until(lambda: checkpoint.stat().st_mtime_ns > written, run, 500)  # it goes on with the new server

    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 40
    while _alive([*family, *engine_processes, *server]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive([*family, *engine_processes, *server])


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, start: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    root = tmp_path / "run"
    run = start(root, "--trainer.max_epochs", "200")
    _wait_until((root / "checkpoints" / "last.ckpt").exists, run, 200)
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        run.wait(timeout=60)
    if run.poll() is None:
        # Python drops an interrupt that meets a destructor, so users press again; a shutdown that hangs ignores it.
        run.send_signal(signal.SIGINT)
        run.wait(timeout=60)
    deadline = time.monotonic() + 20
    while _alive(family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(family)
