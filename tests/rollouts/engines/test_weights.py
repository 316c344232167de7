"""Weights on their way to an engine, and the guard of a server process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maxk_lightning.policy import load_model, weight_shapes
from maxk_lightning.rollouts.engines.vllm.launch import GUARD
from maxk_lightning.rollouts.engines.weights import checked, save_shards
from tests.support.runs import listen_to_interrupts

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


def test_weight_shapes_are_those_of_the_loaded_model() -> None:
    state = load_model("builtin").state_dict()
    assert weight_shapes("builtin") == {name: tensor.shape for name, tensor in state.items()}
    assert list(weight_shapes("builtin")) == list(state)
    assert "lm_head.weight" in state  # tied, and still told


def test_weights_pass_when_they_are_all_there_and_finite() -> None:
    assert list(checked(WEIGHTS.items(), ["a", "b"])) == list(WEIGHTS.items())


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([("a", torch.ones(1))], "not given 1 weights, among them b"),
        ([("c", torch.ones(1))], "weight c is unknown"),
        ([("a", torch.ones(1)), ("a", torch.ones(1))], "a is unknown to the rollout engine, or given twice"),
        ([("a", torch.tensor([1.0, torch.inf]))], "weight a is not finite"),
        ([("a", torch.tensor([torch.nan]))], "weight a is not finite"),
    ],
)
def test_weights_that_would_do_silent_harm_are_refused(weights: list[tuple[str, torch.Tensor]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(checked(weights, ["a", "b"]))


def test_shards_hold_every_weight_once_and_tied_ones_twice(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "tied": WEIGHTS["a"], "c": torch.zeros(3, dtype=torch.bfloat16)}
    save_shards(weights.items(), tmp_path, shard_bytes=30)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2  # a (24 bytes) and b (16); tied (24) and c (6)
    loaded = [load_file(file) for file in files]
    assert [sorted(part) for part in loaded] == [["a", "b"], ["c", "tied"]]
    for name, tensor in {name: tensor for part in loaded for name, tensor in part.items()}.items():
        assert torch.equal(tensor, weights[name])
        assert tensor.dtype == weights[name].dtype


def _is_alive(pid: int) -> bool:
    """Running: neither gone nor a zombie that waits for whoever adopted it."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def _wait_until(condition, timeout_s: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_guarded_command_and_its_children_end_with_the_parent(tmp_path: Path, end: signal.Signals) -> None:
    pids = tmp_path / "pids"
    # A server that ignores SIGTERM, with a child that does, too.
    command = f"trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> {pids}; sleep 60' & echo $$ >> {pids}; wait; sleep 60"
    parent = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, {str(GUARD)!r}, str(os.getpid()), 'sh', '-c', sys.argv[1]], "
        "start_new_session=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, command], stderr=subprocess.DEVNULL, preexec_fn=listen_to_interrupts
    )
    assert _wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    started = [int(pid) for pid in pids.read_text().split()]
    assert all(map(_is_alive, started))
    process.send_signal(end)
    process.wait()
    assert _wait_until(lambda: not any(map(_is_alive, started)))


def test_the_guard_passes_the_exit_status_on() -> None:
    finished = subprocess.run([sys.executable, str(GUARD), str(os.getpid()), "sh", "-c", "exit 7"], check=False)
    assert finished.returncode == 7
