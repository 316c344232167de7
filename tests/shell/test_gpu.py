"""What only a GPU can show: bfloat16, CUDA graphs, sleep mode, memory given back. Run by scripts/gpu_check.sh."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.policy import Policy, load_model
from maxk_lightning.rollouts import EngineError, VLLMEngine
from maxk_lightning.rollouts.weight_sync import logprob_gap
from maxk_lightning.types import Prompt, Sampling
from tests.support.paths import ROOT

pytestmark = pytest.mark.gpu
PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 25 + i)), seed=100 + i) for i in range(8)]
SAMPLING = Sampling(num_completions=8, max_new_tokens=96, temperature=0.8)


@pytest.fixture(params=["eager", "graphs"])
def engine(request: pytest.FixtureRequest) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(
        kv_cache_gib=1.0, max_model_len=512, enforce_eager=request.param == "eager", sleep_while_training=True
    )
    yield engine
    engine.close()


def test_bfloat16_logprobs_follow_every_push_also_after_sleep(engine: VLLMEngine) -> None:
    policy = Policy(load_model("builtin").cuda())
    for version in range(3):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        engine.load_weights(policy.model.state_dict().items(), version)
        groups = engine.generate(PROMPTS, SAMPLING)
        assert logprob_gap(policy, PROMPTS, groups, SAMPLING.temperature)[0] < 0.1  # bfloat16 against float32
        assert engine.sleep()
        with pytest.raises(EngineError, match="sleeps"):
            engine.generate(PROMPTS, SAMPLING)


def test_sleeping_and_closing_give_memory_back(engine: VLLMEngine) -> None:
    engine.load_weights(load_model("builtin").cuda().state_dict().items(), 0)
    engine.generate(PROMPTS, SAMPLING)
    awake, _ = torch.cuda.mem_get_info()
    engine.sleep()
    asleep, _ = torch.cuda.mem_get_info()
    assert asleep - awake > 0.9 * 2**30  # the KV cache
    engine.close()
    closed, _ = torch.cuda.mem_get_info()
    assert closed >= asleep


@pytest.mark.parametrize("ahead", [0, 1])
def test_training_in_mixed_precision(tmp_path: Path, ahead: int) -> None:
    """Losses are numbers, and the engine's log-probs stay near the trainer's."""
    MaxKCLI(
        f"fit --config {ROOT}/configs/tiny_vllm.yaml --trainer.accelerator gpu --trainer.precision bf16-mixed"
        f" --trainer.default_root_dir {tmp_path} --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 3"
        f" --rollout.max_logprob_gap 0.2 --rollout.engine.dtype bfloat16 --rollout.engine.enforce_eager false"
        f" --rollout.rollouts_ahead {ahead} --rollout.engine.sleep_while_training {str(not ahead).lower()}".split()
    )
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    losses, gaps = ([event.value for event in curves.Scalars(tag)] for tag in ("train/loss", "rollout/logprob_gap"))
    assert len(losses) > 3
    assert all(map(math.isfinite, losses))
    assert len(gaps) >= 3
    assert max(gaps) < 0.2
