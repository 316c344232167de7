"""What vLLM would do on a GPU, asked of its own code beside a GPU that is only described (tests/support)."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from maxk_lightning.policy import resolve_policy
from tests.support.paths import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SCRIPT = ROOT / "tests" / "support" / "described_gpu.py"
POLICIES = ROOT / "tests" / "fixtures" / "policies"
CONFIGS = sorted((ROOT / "configs").glob("qwen*.yaml"))
CAPACITY_GIB = {"qwen7b": 139.8, "qwen0.5b_lora": 23.6}
"What GPUs of the stated size offer (H200; RTX 4090), by config; otherwise 80 GB:"
H100_GIB = 79.1
OF_THE_ENGINE = ("engine's", "total", "weight in transfer")
"Rows of a memory table that are not the trainer's while the engine starts."
FORMER_PORT = 51217
"A constant that two runs on one machine once shared."
Answer = dict[str, Any]


def _ask(questions: list[dict[str, Any]], **environment: str) -> list[Answer]:
    asked = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(questions),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.environ.get("DESCRIBED_PACKAGE", str(ROOT))} | environment,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr[-4000:]
    answers: list[Answer] = json.loads(asked.stdout)
    return answers


@cache
def _config(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def _free_gib(path: Path) -> float:
    """What the trainer leaves of the GPU by the table in the file, gradients and optimizer states counted: an engine
    may have to start again amid a run."""
    rows = re.findall(r"^#   (\S.*?) +(\d+\.\d+) +(\d+\.\d+)$", path.read_text(), re.MULTILINE)
    assert rows
    held = sum(float(sampling) for name, _, sampling in rows if not name.startswith(OF_THE_ENGINE))
    return CAPACITY_GIB.get(path.stem, H100_GIB) - held


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories by the name that the configs give: descriptions alone, with the built-in policy's tokenizer."""
    found = {}
    for size in ("0.5B", "1.5B", "7B"):
        directory = tmp_path_factory.mktemp(size)
        for file in Path(resolve_policy("builtin")).glob("*token*"):
            shutil.copy(file, directory)
        shutil.copy(POLICIES / f"qwen2.5-coder-{size.lower()}" / "config.json", directory)
        save_file({"model.norm.weight": torch.ones(1, dtype=torch.bfloat16)}, directory / "model.safetensors")
        found[f"Qwen/Qwen2.5-Coder-{size}-Instruct"] = str(directory)
    return found


def _colocated(path: Path, policies: dict[str, str], **more: Any) -> dict[str, Any]:
    config = _config(path)
    engine = config["rollout"]["engine"]
    assert engine["class_path"] == "maxk_lightning.rollouts.VLLMEngine"
    return {
        "about": "colocated",
        "policy": policies[config["model"]["policy"]],
        "options": engine["init_args"],
        "total_gib": CAPACITY_GIB.get(path.stem, H100_GIB),
        "free_gib": _free_gib(path),
        **more,
    }


@pytest.fixture(scope="module")
def answers(policies: dict[str, str]) -> dict[str, Answer]:
    """What becomes of the engine of every config, and of some changes to it."""
    first = ROOT / "configs" / "qwen7b_80gb.yaml"
    options = _config(first)["rollout"]["engine"]["init_args"]
    without = {name: value for name, value in options.items() if name != "kv_cache_gib"}
    changes: dict[str, dict[str, Any]] = {
        "no size": {"options": without},
        "share": {"options": {**without, "gpu_memory_utilization": 0.9}},
        "entropy": {"options": {**options, "record_entropy": True}},
        "second GPU": {"device": 3},
        "sleep": {"options": {**options, "sleep_while_training": True}},
    }
    questions = {path.stem: _colocated(path, policies) for path in CONFIGS}
    questions |= {name: _colocated(first, policies, **change) for name, change in changes.items()}
    size = {"kv-cache-memory-bytes": 6 << 30, "max-model-len": 768}
    servers: dict[str, dict[str, Any]] = {
        "server": {},
        "server on the trainer's": {"gpus": "0,1"},
        "server of two": {"gpus": "1,2", "server_args": {**size, "tensor-parallel-size": 2}},
        "server beside": {"transfer": "ipc", "server_args": size},
    }
    policy = policies["Qwen/Qwen2.5-Coder-7B-Instruct"]
    questions |= {name: {"about": "server", "policy": policy, "options": chosen} for name, chosen in servers.items()}
    with _two_workers() as url, socket.socket() as taken:
        with suppress(OSError):  # somebody else's is as good
            taken.bind(("127.0.0.1", FORMER_PORT))
            taken.listen()
        questions["transfer"] = {"about": "transfer", "policy": policy, "url": url}
        return dict(zip(questions, _ask(list(questions.values())), strict=True))


@contextmanager
def _two_workers() -> Iterator[str]:
    """A server that says that it has two workers; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"world_size": 2}')

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_the_engine_of_every_config_is_admitted_beside_the_trainer(answers: dict[str, Answer], name: str) -> None:
    answer = answers[name]
    assert answer.get("refused") is None
    assert answer["admission"] is None
    config = _config(ROOT / "configs" / f"{name}.yaml")
    assert answer["kv_cache_bytes"] == config["rollout"]["engine"]["init_args"]["kv_cache_gib"] * 2**30
    assert answer["batched_tokens"] <= 8192  # vLLM's own choice on a GPU of this size is 16384
    assert answer["is_second_runner"]
    assert answer["dtype"] == "torch.bfloat16"
    assert answer["head_dtype"] == "torch.float32"


def test_admission_is_refused_where_a_share_is_not_free(answers: dict[str, Answer]) -> None:
    """Shows that the question is not always answered with yes."""
    assert "less than desired GPU memory utilization (0.9" in answers["share"]["admission"]


def test_an_engine_that_is_not_told_how_much_it_may_take_is_refused(answers: dict[str, Answer]) -> None:
    # 57344 bytes per token of 28 layers, 4 heads of 128; 128 completions of 768 tokens
    assert re.search(r"set kv_cache_gib\. 5\.2 holds 128 completions of 768 tokens", answers["no size"]["refused"])


def test_the_recorder_of_entropies_is_taken_by_the_second_model_runner(answers: dict[str, Answer]) -> None:
    assert answers["entropy"]["is_second_runner"]
    assert answers["entropy"]["logits_processors"] is None


def test_a_single_rank_on_another_gpu_is_told_how_to_start(answers: dict[str, Answer]) -> None:
    assert "cuda:3" in answers["second GPU"]["refused"]
    assert "CUDA_VISIBLE_DEVICES=3" in answers["second GPU"]["refused"]


def test_sleep_mode_is_known_to_vllm(answers: dict[str, Answer]) -> None:
    assert answers["sleep"]["sleeps"]


def test_the_share_that_the_memory_table_assumes_is_vllms(answers: dict[str, Answer]) -> None:
    from maxk_lightning.rollouts.engines.vllm.arguments import DEFAULT_UTILIZATION

    assert {answer["default_share"] for name, answer in answers.items() if name.startswith("qwen")} == {
        DEFAULT_UTILIZATION
    }


def test_a_server_lands_on_gpus_of_its_own(answers: dict[str, Answer]) -> None:
    assert "needs GPUs that no rank trains on" in answers["server"]["refused"]
    assert "the policy trains on 0;" in answers["server on the trainer's"]["refused"]


def test_vllm_reads_a_servers_arguments_as_meant(answers: dict[str, Answer]) -> None:
    expected = {
        "utilization": 0.01,  # or it would not start beside a trainer
        "kv_cache_bytes": 6 << 30,
        "head_dtype": "torch.float32",
        "logprobs_mode": "processed_logprobs",
    }
    of_two, beside = answers["server of two"], answers["server beside"]
    assert of_two["gpus"] == "1,2"
    assert of_two["arguments"].items() >= (expected | {"tensor_parallel_size": 2, "backend": "nccl"}).items()
    assert beside["gpus"] == "0"  # the rank's own
    assert beside["arguments"].items() >= (expected | {"tensor_parallel_size": 1, "backend": "ipc"}).items()


def test_the_transfer_group_meets_at_a_port_that_nobody_has(answers: dict[str, Answer]) -> None:
    assert answers["transfer"]["master_port"] != FORMER_PORT
    assert answers["transfer"]["world_size"] == 3  # rank 0 and both workers
