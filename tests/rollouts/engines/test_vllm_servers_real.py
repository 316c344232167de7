"""Two real vLLM servers on a CPU, given weights by files."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxk_lightning.policy import Policy, load_model, resolve_policy
from maxk_lightning.rollouts import VLLMServerEngine
from maxk_lightning.rollouts.engines.vllm.launch import REQUIRED_ARGS, Launch, Process, free_port
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.weight_sync import Weights, WeightSync
from maxk_lightning.types import Prompt, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROMPTS = [Prompt(problem_id=str(seed), token_ids=tuple(range(5, 25)), seed=seed) for seed in range(4)]
SAMPLING = Sampling(num_completions=16, max_new_tokens=40)
ARGUMENTS = REQUIRED_ARGS | {
    "enforce-eager": True,
    "max-model-len": 256,
    "dtype": "float32",
    "kv-cache-memory-bytes": 2**26,
    "enable-chunked-prefill": False,
    "distributed-executor-backend": "uni",
    "host": "127.0.0.1",
}


def _serve(port: int) -> Process:
    arguments = ARGUMENTS | {"port": port}
    return Process(Launch(policy=resolve_policy("builtin"), arguments=arguments, gpus=None, takes_handles=False))


@pytest.fixture
def servers() -> Iterator[dict[str, Process]]:
    ports = [free_port("127.0.0.1") for _ in range(2)]
    processes = {f"http://127.0.0.1:{port}": _serve(port) for port in ports}
    yield processes
    for process in processes.values():
        process.close()


def test_two_servers_sample_what_one_does_and_one_may_die(
    servers: dict[str, Process], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(load_model("builtin"))
    urls = list(servers)
    engine = VLLMServerEngine(
        urls=urls, transfer="file", transfer_dir=str(tmp_path), wire_dtype="float32", max_connections=4, timeout_s=120.0
    )

    def weights(step: int, scale: float) -> Weights:
        for parameter in policy.parameters():
            parameter.data.mul_(scale)
        return Weights(policy=policy, named_tensors=lambda: iter(policy.model.state_dict().items()), step=step)

    sync = WeightSync(engine, max_logprob_gap=1e-4)
    try:
        both = weights(1, 1.01)
        while len(engine._fleet.links if engine._fleet else []) < 2:  # the second one may start later
            sync.version = None
            assert sync.refresh(both, PROMPTS, SAMPLING, Ranks())
        assert all(link.mark is not None for link in engine._links)
        whole = engine.generate(PROMPTS, SAMPLING)
        arrived = []
        for arrival in engine.stream(PROMPTS, SAMPLING):
            arrived.append(arrival)
            if len(arrived) == 8:
                with caplog.at_level(logging.WARNING):
                    servers[urls[1]].close()
        assert f"the vLLM server at {urls[1]} is left out" in caplog.text
        assert len(arrived) == len(PROMPTS) * SAMPLING.num_completions
        assert all(completion.token_ids == whole[index][sample].token_ids for index, sample, completion in arrived)

        port = int(urls[1].rpartition(":")[2])
        servers[urls[1]] = _serve(port)
        assert sync.refresh(weights(2, 1.01), PROMPTS, SAMPLING, Ranks())
        later = weights(3, 1.01)
        while len(engine._fleet.links if engine._fleet else []) < 2:
            sync.version = None
            assert sync.refresh(later, PROMPTS, SAMPLING, Ranks())
        assert engine.generate(PROMPTS, SAMPLING) != whole
    finally:
        engine.close()
