"""What only a GPU can show. `scripts/gpu_check.sh` runs it, one finding per process; `d01` in a name is a finding.

The findings are those of a review of every line that runs on a GPU; `scripts/gpu_check.py` lists them.
"""

import math
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.callbacks.checks import check_overlap
from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.module import PolicyModule
from maxk_lightning.policy import Policy, build_policy, load_model
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import EngineError, EngineLoad, TransformersEngine, VLLMEngine
from maxk_lightning.rollouts.weight_sync import logprob_gap
from maxk_lightning.types import Completion, Prompt, Sampling
from tests.support.device import ACCELERATOR, DEVICE, IS_REHEARSAL, needs_gpu, needs_two_gpus
from tests.support.paths import ROOT
from tests.support.runs import Run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]
PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 25 + i)), seed=100 + i) for i in range(8)]
SAMPLING = Sampling(num_completions=8, max_new_tokens=96, temperature=0.8)
POLICY = os.environ.get("MAXK_GPU_CHECK_POLICY", "builtin")
"Of the shape of a published one, where the script has made one."
SMALL_RUN = (
    " --trainer.devices 1 --trainer.max_epochs 2 --trainer.check_val_every_n_epoch 2 --validate_before_fit true"
    " --trainer.enable_progress_bar false --data.validation.limit 4 --data.prompts_per_rollout 8"
    " --rollout.sampling.max_new_tokens 32 --rollout.eval_sampling.max_new_tokens 32"
    " --rollout.eval_sampling.num_completions 4 --checkpoint.every_n_epochs 9"
)
BF16 = {"dtype": "bfloat16"}  # also on the CPU of a rehearsal


@pytest.fixture(params=["eager", "graphs"])
def engine(request: pytest.FixtureRequest) -> Iterator[VLLMEngine]:
    is_eager = request.param == "eager" or IS_REHEARSAL
    engine = VLLMEngine(
        kv_cache_gib=0.5, max_model_len=512, enforce_eager=is_eager, sleep_while_training=not IS_REHEARSAL, **BF16
    )
    yield engine
    engine.close()


def _policy(name: str = "builtin") -> Policy:
    return Policy(load_model(name).to(DEVICE))


def _moved(policy: Policy) -> Policy:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return policy


@needs_gpu
def test_d01_an_engine_starts_where_a_sixth_of_the_gpu_is_taken() -> None:
    free, total = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - total * 5 // 6), dtype=torch.uint8, device="cuda")
    engine = VLLMEngine(kv_cache_gib=0.5, max_model_len=512, enforce_eager=True)
    engine.load_weights(_policy().model.state_dict().items(), 0)
    assert len(engine.generate(PROMPTS, SAMPLING)) == len(PROMPTS)
    assert taken.numel() > 0


def test_d02_entropies_are_those_of_the_policy() -> None:
    policy = _policy()
    engine = VLLMEngine(
        kv_cache_gib=0.5, max_model_len=512, enforce_eager=IS_REHEARSAL, record_entropy=True, dtype="float32"
    )
    engine.load_weights(policy.model.state_dict().items(), 0)
    groups = engine.generate(PROMPTS, SAMPLING)
    rows = pack([p.token_ids for p in PROMPTS], [[c.token_ids for c in group] for group in groups])
    with torch.no_grad():
        own_BT = policy(rows.to(torch.device(DEVICE)), SAMPLING.temperature).entropies_BT.cpu()
    told_M = torch.tensor([value for group in groups for c in group for value in c.entropies or ()])
    torch.testing.assert_close(told_M, own_BT[rows.mask_BT], atol=0.02, rtol=0.01)  # TF32 on one side


def test_d03_an_engine_that_slept_is_closed_and_another_starts(engine: VLLMEngine) -> None:
    """Three times: the allocator of sleep mode is one per process."""
    for version in range(3):
        policy = _moved(_policy())
        engine.load_weights(policy.model.state_dict().items(), version)
        assert _gap(policy, engine.generate(PROMPTS, SAMPLING)) < 0.1
        assert engine.sleep() is not IS_REHEARSAL
        engine.close()


def test_d04_logprobs_of_bfloat16_follow_every_push(engine: VLLMEngine) -> None:
    policy = _policy()
    for version in range(3):
        engine.load_weights(_moved(policy).model.state_dict().items(), version)
        groups = engine.generate(PROMPTS, SAMPLING)
        gap = _gap(policy, groups)
        print("nats per token, bfloat16 of the engine against float32:", gap)
        assert gap < 0.05
        if engine.sleep():
            with pytest.raises(EngineError, match="sleeps"):
                engine.generate(PROMPTS, SAMPLING)


def test_d05_training_in_mixed_precision(tmp_path: Path) -> None:
    """Losses are numbers, and the proof of the weights, made in mixed precision too, stays small."""
    dtype, eager = ("float32", "true") if IS_REHEARSAL else ("bfloat16", "false")
    MaxKCLI(
        f"fit --config {ROOT}/configs/tiny_vllm.yaml --trainer.accelerator {ACCELERATOR} --trainer.precision bf16-mixed"
        f" --trainer.default_root_dir {tmp_path} {SMALL_RUN} --rollout.max_logprob_gap 0.2"
        f" --rollout.engine.dtype {dtype} --rollout.engine.enforce_eager {eager}".split()
    )
    _check_curves(tmp_path)


@needs_two_gpus
def test_d06_d16_a_second_gpu_is_refused_or_used_without_touching_the_first(tmp_path: Path) -> None:
    command = f"fit --config {ROOT}/configs/tiny_vllm.yaml --trainer.accelerator gpu --rollout.max_logprob_gap 0.2"
    with pytest.raises((ValueError, SystemExit)):
        MaxKCLI(f"{command} --trainer.default_root_dir {tmp_path} {SMALL_RUN} --trainer.devices [1]".split())
    assert torch.cuda.memory_allocated(0) == 0


@needs_two_gpus
def test_d07_d08_d17_a_server_on_the_second_gpu_takes_weights_over_nccl(tmp_path: Path) -> None:
    MaxKCLI(
        f"fit --config {ROOT}/configs/tiny_vllm.yaml --trainer.accelerator gpu --rollout.max_logprob_gap 0.2"
        f" --trainer.default_root_dir {tmp_path} {SMALL_RUN} --rollout.rollouts_ahead 1"
        " --rollout.engine maxk_lightning.rollouts.VLLMServerEngine --rollout.engine.gpus 1".split()
    )
    _check_curves(tmp_path)


def test_d09_rollouts_ahead_are_refused_on_the_gpu_that_trains() -> None:
    for engine in (VLLMEngine(kv_cache_gib=1.0), TransformersEngine()):
        with pytest.raises(ValueError, match="samples on the GPU that trains"):
            check_overlap(engine, torch.device("cuda"))


class Memory(RolloutCallback):
    """Notes gradients, and what is allocated, before every rollout."""

    gradients: list[int] = []  # noqa: RUF012 (of this process)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Note them."""
        self.gradients.append(sum(parameter.grad is not None for parameter in pl_module.parameters()))
        super().on_train_epoch_start(trainer, pl_module)


def test_d11_gradients_are_gone_before_a_rollout(tmp_path: Path) -> None:
    cli = MaxKCLI(
        f"--config {ROOT}/configs/tiny.yaml --trainer.accelerator {ACCELERATOR} {SMALL_RUN}"
        f" --trainer.default_root_dir {tmp_path}".split(),
        run=False,
    )
    memory = Memory(TransformersEngine(), cli.config_init["rollout"].reward, Sampling(max_new_tokens=32))
    cli.trainer.callbacks = [memory, *(c for c in cli.trainer.callbacks if not isinstance(c, RolloutCallback))]  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    assert memory.gradients == [0, 0]


@needs_gpu
@pytest.mark.parametrize("has_graphs", [False, True])
def test_d12_an_engine_holds_what_the_table_says(has_graphs: bool) -> None:
    """Not more, and not less than half: the table errs on the safe side."""
    engine = VLLMEngine(POLICY, kv_cache_gib=2.0, max_model_len=2048, enforce_eager=not has_graphs)
    weights = load_model(POLICY, torch.bfloat16).state_dict()
    torch.zeros(1, device="cuda")
    before, total = torch.cuda.mem_get_info()
    engine.load_weights(weights.items(), 0)
    prompts = [Prompt(problem_id=str(i), token_ids=tuple(range(10, 522)), seed=i) for i in range(64)]
    engine.generate(prompts, Sampling(num_completions=4, max_new_tokens=64))
    after, _ = torch.cuda.mem_get_info()
    told = engine.memory(EngineLoad(num_completions=256, max_tokens=576, gpu_bytes=total))
    num_bytes = sum(tensor.numel() * 2 for tensor in {t.data_ptr(): t for t in weights.values()}.values())
    sizes = (num_bytes, told.kv_cache_bytes, told.prefill_bytes, told.fixed_bytes)
    print(f"GiB: measured {(before - after) / 2**30:.2f}; table {sum(sizes) / 2**30:.2f} =", [s / 2**30 for s in sizes])
    assert 0.5 * sum(sizes) < before - after < 1.1 * sum(sizes) + 2**30  # 1 of the 3 GiB of workspaces


def test_d19_the_first_step_with_8_bit_states_compiles_in_reasonable_time() -> None:
    pytest.importorskip("vllm")  # sets the number of compile threads to 1
    adam = pytest.importorskip("torchao.optim").Adam8bit
    parameters = [torch.nn.Parameter(torch.zeros(256, 256 * n, device=DEVICE)) for n in (1, 2, 3)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    started = time.perf_counter()
    adam(parameters, lr=1e-3).step()
    print(f"seconds of the first step, 3 shapes: {time.perf_counter() - started:.1f}")
    assert all(bool((parameter < 0).all()) for parameter in parameters)


@pytest.mark.parametrize("config", ["qwen7b", "qwen7b_80gb", "qwen1.5b", "qwen0.5b_lora"])
def test_config_of_one_gpu_with_random_weights(config: str, tmp_path: Path) -> None:
    """As it stands: its strategy, optimizer and precision, vLLM beside the trainer; fewer and other problems."""
    pytest.importorskip("torchao")
    builtin = "".join(f" --data.{split} maxk_lightning.data.Builtin" for split in ("train", "validation", "test"))
    others = " --rollout.engine.dtype float32 --rollout.engine.enforce_eager true" if IS_REHEARSAL else ""
    if POLICY == "builtin":
        others += " --rollout.engine.max_model_len 512 --data.max_prompt_tokens 384"
    context = partial(torch.compiler.set_stance, "force_eager" if IS_REHEARSAL else "default")
    with context():
        MaxKCLI(
            f"fit --config {ROOT}/configs/{config}.yaml --model.policy {POLICY} --trainer.accelerator {ACCELERATOR}"
            f" --trainer.default_root_dir {tmp_path} {builtin} {SMALL_RUN} --rollout.engine.kv_cache_gib 0.5{others}"
            " --data.validation.split validation --data.test.split test --data.num_ppo_iterations 1".split()
        )
    _check_curves(tmp_path, num_losses=2)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_has_the_gradients_of_the_usual(dtype: torch.dtype) -> None:
    """Groups of several lengths, one after the other, so that it compiles for lengths that change."""
    usual, flex = (build_policy("builtin", dtype, attention=name).to(DEVICE) for name in (None, "flex_attention"))
    for length in (40, 300, 171):
        rows = pack([[7] * length, [8] * 20], [[[9] * 30, [10] * 5, []], [[11], [12] * length]]).to(
            torch.device(DEVICE)
        )
        norms, logprobs = [], []
        for policy in (usual, flex):
            policy.zero_grad()
            logprobs_BT = policy(rows, 1.0).logprobs_BT
            logprobs_BT.sum().backward()
            logprobs.append(logprobs_BT)
            norms.append([float(parameter.grad.float().norm()) for parameter in policy.parameters()])  # type: ignore[union-attr]
        tolerance = 0.002 if dtype == torch.float32 else 0.05  # TF32
        torch.testing.assert_close(logprobs[0], logprobs[1], atol=4 * tolerance, rtol=tolerance)
        assert norms[1] == pytest.approx(norms[0], rel=5 * tolerance, abs=1e-3)


@needs_two_gpus
def test_two_gpus_train_a_sharded_policy(tmp_path: Path) -> None:
    options = f"--config configs/tiny_vllm.yaml --trainer.accelerator gpu --rollout.max_logprob_gap 0.2 {SMALL_RUN}"
    Run(tmp_path, f"{options} --trainer.strategy fsdp2 --trainer.precision bf16-mixed --trainer.devices 2").finish()
    _check_curves(tmp_path)


def _gap(policy: Policy, groups: list[list[Completion]]) -> float:
    return logprob_gap(policy, PROMPTS, groups, SAMPLING.temperature)[0]


def _check_curves(root: Path, num_losses: int = 6) -> None:
    curves = EventAccumulator(str(root / "tensorboard"))
    curves.Reload()
    losses, gaps = ([event.value for event in curves.Scalars(tag)] for tag in ("train/loss", "rollout/logprob_gap"))
    print("losses", losses, "gaps", gaps)
    assert len(losses) == num_losses
    assert all(map(math.isfinite, losses))
    assert max(gaps) < 0.2
