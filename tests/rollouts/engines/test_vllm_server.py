"""The server engine and servers that fail: connections, refusals, and no rank that waits for another one."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import EngineError, VLLMServerEngine
from maxk_lightning.rollouts.engines.vllm.gpus import RankGpu, check_gpus
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.launch import free_port
from maxk_lightning.rollouts.engines.vllm.link import Link
from maxk_lightning.rollouts.engines.vllm.watchdog import HealthCheck, aborted_without, given_up_without
from tests.support.paths import ROOT
from tests.support.rank_processes import run_ranks

SUPPORT = ROOT / "tests" / "support"


@pytest.fixture
def failing_server() -> Iterator[Callable[[str], tuple[str, str]]]:
    """Starts servers; returns URL and peer port."""
    started = []

    def start(plan: str) -> tuple[str, str]:
        process = subprocess.Popen([sys.executable, str(SUPPORT / "failing_server.py"), plan], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        port, peer = process.stdout.readline().decode().split()
        return f"http://127.0.0.1:{port}", peer

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_connections_are_kept_and_replaced_when_the_server_hangs_up(
    failing_server: Callable[[str], tuple[str, str]],
) -> None:
    server = Server(failing_server("none")[0], 30.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: server.post("anything", {}), range(200)))
    assert server.get("connections")["number"] <= 4
    for _ in range(3):
        server.post("hang_up", {})
        assert server.post("anything", {}) == {"success": True}
    server.close()


def test_what_a_server_answers_decides_who_is_to_blame(failing_server: Callable[[str], tuple[str, str]]) -> None:
    server = Server(failing_server("refuses")[0], 30.0)
    assert server.is_healthy()
    with pytest.raises(ValueError, match=r"refuses collective_rpc \(400\)"):
        server.post("collective_rpc", {})
    with pytest.raises(EngineError, match=r"failed at broken \(500\)"):
        server.post("broken", {})
    nobody = Server(f"http://127.0.0.1:{free_port()}", 30.0)
    assert not nobody.is_healthy()
    with pytest.raises(EngineError, match="does not answer anything"):
        nobody.post("anything", {})
    with pytest.raises(ValueError, match="must look like"):
        Server("10.0.0.2:8000", 30.0)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param("dies", "EngineError: the vLLM server is gone", marks=[pytest.mark.vllm, pytest.mark.slow]),
        pytest.param("refuses", "ValueError: the vLLM server refuses collective_rpc (400)", marks=pytest.mark.slow),
    ],
)
def test_no_rank_waits_when_a_push_fails(
    failing_server: Callable[[str], tuple[str, str]], tmp_path: Path, plan: str, expected: str
) -> None:
    url, peer = failing_server(plan)
    for end in run_ranks("server_ranks.py", tmp_path / "store", (plan, url, peer), timeout_s=400):
        assert end.returncode == 0, end.err[-3000:]
        assert end.out.splitlines()[-1].startswith(expected)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_that_dies_amid_a_push_is_left_out_on_every_rank(
    failing_server: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    dying, living = failing_server("dies"), failing_server("none")
    for end in run_ranks("server_ranks.py", tmp_path / "store", ("dies", *dying, *living), timeout_s=400):
        assert end.returncode == 0, end.err[-3000:]
        assert end.out.splitlines()[-1] == f"taken by {living[0]}"


def test_a_wait_ends_when_the_server_is_gone_or_time_is_up() -> None:
    waiting = threading.Event()
    with pytest.raises(EngineError, match="is gone"), aborted_without(HealthCheck(lambda: False, 600.0), waiting.set):
        waiting.wait()
    waiting.clear()
    with pytest.raises(EngineError, match="longer than"), aborted_without(HealthCheck(lambda: True, 1e-3), waiting.set):
        waiting.wait()
    with pytest.raises(EngineError, match="is gone"):
        given_up_without(HealthCheck(lambda: False, 600.0), threading.Event().wait, "waiting")
    assert given_up_without(HealthCheck(lambda: True, 600.0), lambda: 7, "counting") == 7


def test_a_server_that_answers_late_once_is_not_gone() -> None:
    looks = iter([False, False, True, False, False, True])
    health = HealthCheck(lambda: next(looks), 600.0)
    assert [health.failure() for _ in range(6)] == [None] * 6


RANKS = [RankGpu(host="here", name=str(index), uuid=f"GPU-aa{index}") for index in range(2)]
OTHER = RankGpu(host="there", name="2", uuid="GPU-aa2")


@pytest.mark.parametrize(
    ("gpus", "num_needed", "reason"),
    [
        (None, 1, r'no rank trains on, e\.g\. gpus: "3"'),
        ("1,4", 2, "the policy trains on 1;"),
        ("GPU-aa0", 1, "the policy trains on GPU-aa0;"),
        ("4", 2, "ask for 2 GPUs"),
        ("2,3", 2, None),  # the third rank's GPU 2 is another machine's
        ("GPU-bb", 1, None),
    ],
)
def test_a_server_gets_gpus_that_no_rank_trains_on(gpus: str | None, num_needed: int, reason: str | None) -> None:
    if reason is None:
        check_gpus(gpus, num_needed, [*RANKS, OTHER])
    else:
        with pytest.raises(ValueError, match=reason):
            check_gpus(gpus, num_needed, [*RANKS, OTHER])
    check_gpus(None, 8, [None])  # on a CPU nobody needs any


class Receiving:
    """In the place of a connection: notes the weights in the files that it is told of."""

    url = ""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        self.names: set[str] = set()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "collective_rpc":
            for file in Path(body["kwargs"]["weights_path"]).iterdir():
                loaded = load_file(file)
                self.names |= set(loaded)
                self.dtypes |= {tensor.dtype for tensor in loaded.values()}
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.bfloat16),
        ({"server_args": {"dtype": "float32"}}, torch.float32),
        ({"server_args": {"dtype": "half"}}, torch.float16),
        ({"server_args": {"dtype": "auto"}}, torch.bfloat16),
        ({"wire_dtype": "float32"}, torch.float32),
    ],
)
def test_files_hold_weights_in_the_type_of_the_server(
    tmp_path: Path, options: dict[str, Any], expected: torch.dtype
) -> None:
    engine = VLLMServerEngine(transfer="file", transfer_dir=str(tmp_path), **options)
    receiving = Receiving()
    link = Link("http://127.0.0.1:1", 1.0)
    link.server = receiving  # type: ignore[assignment]
    engine._links = [link]
    weights = load_model("builtin").state_dict()
    engine.load_weights(weights.items(), 1)
    assert receiving.dtypes == {expected}
    assert receiving.names == set(weights)
    assert not list(tmp_path.iterdir())


def test_closing_leaves_the_transfer_group_before_the_server_ends() -> None:
    """Its buffers are on the trainer's GPU, and a restart opens another one."""
    engine = VLLMServerEngine(gpus="7")
    order: list[str] = []
    link = Link("http://127.0.0.1:1", 1.0)
    link.sender = SimpleNamespace(shutdown=lambda: order.append("group"))  # type: ignore[assignment]
    link.process = SimpleNamespace(close=lambda: order.append("server"))  # type: ignore[assignment]
    engine._links = [link]
    engine.close()
    assert order == ["group", "server"]


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"master_address is 127\.0\.0\.1, where the server .* would look for itself"):
        VLLMServerEngine(url="http://203.0.113.5:8000")
    VLLMServerEngine(url="http://203.0.113.5:8000", master_address="203.0.113.1")
    VLLMServerEngine(url="http://localhost:8000")
    with pytest.raises(ValueError, match="ipc is for a server started here"):
        VLLMServerEngine(url="http://localhost:8000", transfer="ipc")
    with pytest.raises(ValueError, match="with transfer: ipc give kv-cache-memory-bytes"):
        VLLMServerEngine(transfer="ipc")
    with pytest.raises(ValueError, match="no effect with transfer: ipc"):
        VLLMServerEngine(transfer="ipc", master_port=51217, server_args={"kv-cache-memory-bytes": 1 << 30})
    with pytest.raises(ValueError, match="give url or urls, not both"):
        VLLMServerEngine(url="http://localhost:8000", urls=["http://localhost:8001"])
    for urls in ([], ["http://localhost:8000"] * 2):
        with pytest.raises(ValueError, match=r"urls is \[.*\], must be one URL or more, each of another server"):
            VLLMServerEngine(urls=urls)
    with pytest.raises(ValueError, match="for a server started here, but urls is given"):
        VLLMServerEngine(urls=["http://localhost:8000"], gpus="1")
    with pytest.raises(ValueError, match=r"where the server at http://203\.0\.113\.5:8000 would look"):
        VLLMServerEngine(urls=["http://localhost:8000", "http://203.0.113.5:8000"])
    with pytest.raises(ValueError, match="transfer is tcp"):
        VLLMServerEngine(transfer="tcp")  # type: ignore[arg-type]
