"""Optimizers for big models: 8-bit states and bfloat16 weights train like Adam, and survive a checkpoint exactly."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torchao.optim import Adam8bit, _AdamW
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from maxk_lightning.callbacks import AtomicCheckpointIO, RolloutCallback
from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.policy import Policy, load_model
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.types import Sampling
from tests.support.fakes import LengthReward

LEARNING_RATE = 1e-3
Optimizer = Callable[[Any], torch.optim.Optimizer]


@pytest.fixture(scope="module")
def wide_policy(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Wide enough for 8 bits: torchao leaves tensors below 4096 values, or not in whole blocks of 256, as they are."""
    directory = tmp_path_factory.mktemp("wide_policy")
    config = AutoConfig.from_pretrained(random_policy, hidden_size=64, intermediate_size=128)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(random_policy).save_pretrained(directory)
    return str(directory)


def _fit(
    policy: str, optimizer: Optimizer, epochs: int = 2, ckpt: Path | None = None, **options: Any
) -> tuple[PolicyModule, Trainer]:
    torch.manual_seed(0)
    module = PolicyModule(policy=policy, objective=GRPO(), optimizer=optimizer, **options)
    data = PromptDataModule(
        train=Builtin("train", limit=8), validation=None, policy=policy, prompts_per_rollout=4, num_ppo_iterations=2
    )
    sampling = Sampling(num_completions=4, max_new_tokens=8)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RolloutCallback(TransformersEngine(policy), LengthReward(), sampling)],
    )
    # torchao compiles its step, which takes a minute on a CPU; what it computes does not depend on it.
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        trainer.fit(module, data, ckpt_path=None if ckpt is None else str(ckpt))
    return module, trainer


def _state_types(trainer: Trainer) -> set[str]:
    (optimizer,) = trainer.optimizers
    return {type(value).__name__ for state in optimizer.state.values() for value in state.values()}


def test_states_of_8_bits_follow_adam(wide_policy: str) -> None:
    """Adam moves a weight by at most about a learning rate per step; 8-bit states by nearly the same amount.

    Dynamic 8-bit quantisation errs by a few per cent of the block's largest value, so nearly all weights agree to a
    small part of the way they went; a weight whose own states are tiny may go astray, but not farther than Adam could.
    """
    start = load_model(wide_policy).state_dict()
    adam = dict(_fit(wide_policy, partial(torch.optim.Adam, lr=LEARNING_RATE), epochs=1)[0].hf_weights())
    module, trainer = _fit(wide_policy, partial(Adam8bit, lr=LEARNING_RATE), epochs=1)
    ours = dict(module.hf_weights())
    assert "OptimState8bit" in _state_types(trainer)
    for layer in ("up_proj", "gate_proj", "down_proj"):
        name = f"model.layers.1.mlp.{layer}.weight"
        way, gap = (adam[name] - start[name]).norm(), (ours[name] - adam[name]).norm()
        assert 0 < gap < 0.05 * way  # not the same optimizer, and nearly


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (partial(Adam8bit, lr=LEARNING_RATE), {}),
        (partial(Adam8bit, lr=LEARNING_RATE, bf16_stochastic_round=True), {"dtype": "bfloat16"}),
    ],
    ids=["float32 weights", "bfloat16 weights"],
)
def test_resumed_is_undisturbed(
    wide_policy: str, tmp_path: Path, optimizer: Optimizer, options: dict[str, Any]
) -> None:
    undisturbed, _ = _fit(wide_policy, optimizer, **options)
    _, first = _fit(wide_policy, optimizer, epochs=1, **options)
    assert "OptimState8bit" in _state_types(first)
    first.save_checkpoint(tmp_path / "first.ckpt")
    resumed, _ = _fit(wide_policy, optimizer, ckpt=tmp_path / "first.ckpt", **options)
    for (name, ours), (_, theirs) in zip(resumed.hf_weights(), undisturbed.hf_weights(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.dtype == getattr(torch, options.get("dtype", "float32"))


def test_a_regression_ends_where_adam_ends() -> None:
    losses = []
    for make in (torch.optim.Adam, Adam8bit):
        torch.manual_seed(0)
        layer = torch.nn.Linear(128, 64)
        inputs, targets = torch.randn(256, 128), torch.randn(256, 64)
        optimizer = make(layer.parameters(), lr=LEARNING_RATE)
        with torch.compiler.set_stance("force_eager"):
            for _ in range(100):
                optimizer.zero_grad()
                loss = (layer(inputs) - targets).square().mean()
                loss.backward()
                optimizer.step()
        losses.append(float(loss))
    adam, ours = losses
    assert adam < 1.0  # it started above 1.3
    assert ours == pytest.approx(adam, rel=0.01)


@pytest.mark.slow
def test_a_checkpoint_with_8_bit_states_is_exported(wide_policy: str, tmp_path: Path) -> None:
    """In a process that has not imported torchao by itself."""
    module, trainer = _fit(wide_policy, partial(Adam8bit, lr=LEARNING_RATE), epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    args = ["export", "--ckpt", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "policy")]
    subprocess.run([sys.executable, "-m", "maxk_lightning", *args], check=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    assert all(torch.equal(weight, exported[name]) for name, weight in module.hf_weights())


def test_stochastic_rounding_is_unbiased_where_the_nearest_is_stuck() -> None:
    """At 1.0 bfloat16 has steps of 2^-7 downward 2^-8; 200 updates of 1e-4 are 0.02 in sum, each far below half one."""
    moved = {}
    for is_stochastic in (True, False):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = _AdamW([weight], lr=1e-4, weight_decay=0.0, bf16_stochastic_round=is_stochastic)
        with torch.compiler.set_stance("force_eager"):
            for _ in range(200):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
        moved[is_stochastic] = float(1 - weight.detach().float().mean())
    assert moved[False] == 0.0
    assert moved[True] == pytest.approx(0.02, rel=0.1)  # the mean of 4096 random roundings


def test_bfloat16_without_stochastic_rounding_is_refused(random_policy: str) -> None:
    with pytest.raises(ValueError, match=r"model.dtype: bfloat16 needs a model.optimizer with bf16_stochastic_round"):
        PolicyModule(policy=random_policy, dtype="bfloat16")


def test_bfloat16_weights_on_several_ranks_are_refused(random_policy: str) -> None:
    module = PolicyModule(
        policy=random_policy, dtype="bfloat16", optimizer=partial(Adam8bit, lr=1e-3, bf16_stochastic_round=True)
    )
    module.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
    module.policy = Policy(load_model(random_policy, torch.bfloat16))
    with pytest.raises(ValueError, match=r"model\.dtype: bfloat16 trains all weights on one GPU only"):
        module.configure_optimizers()


def test_the_command_line_takes_torchao() -> None:
    args = ["--model.optimizer", "torchao.optim.Adam8bit", "--model.optimizer.lr", "3e-6"]
    cli = MaxKCLI(args, run=False)
    optimizer = cli.model.optimizer_from([torch.nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, Adam8bit)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(3e-6)
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.slow
def test_without_torchao_the_missing_class_is_named() -> None:
    code = (
        "import sys; sys.modules['torchao'] = None  # as if it were not installed\n"
        "from maxk_lightning.cli import main\n"
        "sys.argv = ['maxk', 'fit', '--model.optimizer', 'torchao.optim.Adam8bit']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "torchao" in done.stderr
    assert "Traceback" not in done.stderr
