"""Optimizers for big models: 8-bit states and bfloat16 weights train like Adam, and survive a checkpoint exactly."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torchao.optim import Adam8bit, _AdamW
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.policy import Policy, load_model
from tests.support.training import Fit, fit

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


def _fit(policy: str, root: Path, optimizer: Optimizer, *, ckpt_path: Path | None = None, **options: Any) -> Fit:
    epochs = options.pop("epochs", 2)
    module = {"objective": GRPO(), "optimizer": optimizer, **options}
    return fit(policy, root, epochs=epochs, module=module, ckpt_path=ckpt_path)


def _state_types(trainer: Trainer) -> set[str]:
    (optimizer,) = trainer.optimizers
    return {type(value).__name__ for state in optimizer.state.values() for value in state.values()}


def test_states_of_8_bits_follow_adam(wide_policy: str, tmp_path: Path) -> None:
    """Adam moves a weight by at most about a learning rate per step; 8-bit states by nearly the same amount.

    Dynamic 8-bit quantisation errs by a few per cent of the block's largest value, so nearly all weights agree to a
    small part of the way they went; a weight whose own states are tiny may go astray, but not farther than Adam could.
    """
    start = load_model(wide_policy).state_dict()
    adam = _fit(wide_policy, tmp_path, partial(torch.optim.Adam, lr=LEARNING_RATE), epochs=1).weights
    fitted = _fit(wide_policy, tmp_path, partial(Adam8bit, lr=LEARNING_RATE), epochs=1)
    ours = fitted.weights
    assert "OptimState8bit" in _state_types(fitted.trainer)
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
    undisturbed = _fit(wide_policy, tmp_path, optimizer, **options)
    first = _fit(wide_policy, tmp_path, optimizer, epochs=1, **options).trainer
    assert "OptimState8bit" in _state_types(first)
    first.save_checkpoint(tmp_path / "first.ckpt")
    resumed = _fit(wide_policy, tmp_path, optimizer, ckpt_path=tmp_path / "first.ckpt", **options)
    assert resumed.weights.keys() == undisturbed.weights.keys()
    for name, ours in resumed.weights.items():
        assert torch.equal(ours, undisturbed.weights[name]), name
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
    fitted = _fit(wide_policy, tmp_path, partial(Adam8bit, lr=LEARNING_RATE), epochs=1)
    fitted.trainer.save_checkpoint(tmp_path / "last.ckpt")
    args = ["export", "--ckpt", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "policy")]
    subprocess.run([sys.executable, "-m", "maxk_lightning", *args], check=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    assert all(torch.equal(weight, exported[name]) for name, weight in fitted.weights.items())


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


class Gradients(Callback):
    """Counts them when an optimizer step has been made."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Count."""
        self.left.append(sum(parameter.grad is not None for parameter in pl_module.parameters()))


def test_gradients_are_gone_after_a_step(random_policy: str, tmp_path: Path) -> None:
    """The rollout that follows wants their memory."""
    gradients = Gradients()
    fit(random_policy, tmp_path, epochs=1, module={"objective": GRPO()}, callbacks=[gradients])
    assert gradients.left == [0, 0]


def test_an_optimizer_that_multiplies_matrices_does_so_in_float32(random_policy: str, tmp_path: Path) -> None:
    """Lightning calls `training_step` under autocast, and manual optimization steps within it."""
    noted: list[torch.dtype] = []

    class Multiplying(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            noted.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().step(closure)

    class InMixedPrecision(PolicyModule):
        def training_step(self, *args: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
                return super().training_step(*args)

    options = {"optimizer": partial(Multiplying, lr=0.0)}
    fit(random_policy, tmp_path, epochs=1, module=options, module_class=InMixedPrecision)
    assert set(noted) == {torch.float32}
