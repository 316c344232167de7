"""Adapters: what they compute, what trains, what is saved, and that engines and exports see plain merged weights."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PreTrainedModel

from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.objectives import GRPO
from maxk_lightning.policy import Policy, load_model
from maxk_lightning.policy.lora import LoRA, add_adapters, is_adapter, merged, without_adapters
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.training.batch import to_batch
from maxk_lightning.training.reference import Reference
from tests.support.adapters import randomise
from tests.support.paths import ROOT
from tests.support.training import SAMPLING, Fit, fit

LORA = LoRA(r=4, alpha=12.0)
IDS = torch.arange(3, 40)[None]


def _with_random_adapters(policy: str, lora: LoRA = LORA) -> PreTrainedModel:
    """Adapters as after some training: B is no longer zero."""
    model = load_model(policy)
    add_adapters(model, lora)
    randomise(model)
    return model


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


def _train(policy: str, root: Path, epochs: int, ckpt_path: Path | None = None, **options: Any) -> Fit:
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = {"lora": LORA, "objective": GRPO(), "optimizer": adam, **options}
    return fit(policy, root, epochs=epochs, ckpt_path=ckpt_path, module=module)


@pytest.fixture(scope="module")
def checkpoint(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two rollouts with adapters, written by a Trainer."""
    path = tmp_path_factory.mktemp("lora") / "last.ckpt"
    _train(random_policy, path.parent, 2).trainer.save_checkpoint(path)
    return path


def test_fresh_adapters_change_nothing_and_disabled_ones_neither(random_policy: str) -> None:
    base, fresh = load_model(random_policy), load_model(random_policy)
    add_adapters(fresh, LORA)
    assert torch.equal(_logits(fresh), _logits(base))
    model = _with_random_adapters(random_policy)
    changed = _logits(model)
    assert (changed - _logits(base)).abs().max() > 0.1
    with without_adapters(model):
        assert torch.equal(_logits(model), _logits(base))
    assert torch.equal(_logits(model), changed)
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in model.named_parameters())


def test_adapters_are_peft_s_own(random_policy: str) -> None:
    """The same numbers in a model that peft wrapped by itself give the same log-probs."""
    ours = _with_random_adapters(random_policy)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(load_model(random_policy), config)
    theirs.load_state_dict({f"base_model.model.{name}": tensor for name, tensor in ours.state_dict().items()})
    torch.testing.assert_close(_logits(ours), _logits(theirs), atol=0, rtol=0)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_merged_weights_have_plain_names_and_the_same_logprobs(random_policy: str, targets: Any) -> None:
    model = _with_random_adapters(random_policy, LoRA(r=4, alpha=12.0, target_modules=targets))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = load_model(random_policy)
    names = [name for name, _ in merged(model.state_dict().items(), 3.0)]
    assert sorted(names) == sorted(plain.state_dict())
    assert "lm_head.weight" in names  # tied, and yet there
    plain.load_state_dict(dict(merged(model.state_dict().items(), 3.0)))
    torch.testing.assert_close(_logits(plain), _logits(model), atol=2e-5, rtol=2e-5)  # float32, another order of sums
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merging_is_peft_s_own(random_policy: str) -> None:
    ours = _with_random_adapters(random_policy)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(load_model(random_policy), config)
    theirs.load_state_dict({f"base_model.model.{name}": tensor for name, tensor in ours.state_dict().items()})
    unloaded = theirs.merge_and_unload().state_dict()
    for name, weight in merged(ours.state_dict().items(), LORA.scaling):
        torch.testing.assert_close(weight, unloaded[name], atol=1e-6, rtol=1e-5)


def test_merging_holds_one_weight_at_a_time(random_policy: str) -> None:
    """A source that gathers lazily is asked for no more than one adapted layer ahead."""
    fetched: list[str] = []

    def lazily() -> Any:
        for name, tensor in _with_random_adapters(random_policy).state_dict().items():
            fetched.append(name)
            yield name, tensor

    for index, _ in enumerate(merged(lazily(), LORA.scaling), start=1):
        frozen_seen = sum(not is_adapter(name) for name in fetched)
        assert frozen_seen - index <= 1  # a weight waits for its A and B while its bias passes by


def test_only_adapters_train_and_the_engine_gets_what_they_amount_to(random_policy: str, tmp_path: Path) -> None:
    trained = _train(random_policy, tmp_path, 1, gradient_checkpointing=True)
    module, trainer = trained.module, trained.trainer
    base = load_model(random_policy).state_dict()
    model = module.policy.model  # type: ignore[union-attr]
    frozen = {name.replace(".base_layer", ""): w for name, w in model.state_dict().items() if not is_adapter(name)}
    assert all(torch.equal(weight, base[name]) for name, weight in frozen.items())
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in model.named_parameters())
    optimizer: Any = trainer.optimizers[0]
    in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert in_optimizer == {id(parameter) for name, parameter in model.named_parameters() if is_adapter(name)}

    weights = dict(module.hf_weights())
    assert any((weight - base[name]).abs().max() > 1e-3 for name, weight in weights.items())
    engine = TransformersEngine(random_policy)
    engine.load_weights(weights.items(), 1)
    prompts = trained.datamodule.order(0, SAMPLING).prompts
    groups = engine.generate(prompts, SAMPLING)
    rows = pack([p.token_ids for p in prompts], [[c.token_ids for c in group] for group in groups])
    stats = module.policy(rows, 1.0)  # type: ignore[misc]
    sampled = torch.tensor([logprob for group in groups for c in group for logprob in c.logprobs])
    torch.testing.assert_close(stats.logprobs_BT[rows.mask_BT], sampled, atol=1e-4, rtol=0)


def test_frozen_weights_of_16_bits_with_adapters_of_32(random_policy: str, tmp_path: Path) -> None:
    module = _train(random_policy, tmp_path, 1, dtype="bfloat16").module
    types = {is_adapter(name): p.dtype for name, p in module.policy.named_parameters()}  # type: ignore[union-attr]
    assert types == {True: torch.float32, False: torch.bfloat16}
    base = load_model(random_policy, torch.bfloat16).state_dict()
    weights = dict(module.hf_weights())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert any(not torch.equal(weight, base[name]) for name, weight in weights.items())


def test_resumed_is_undisturbed_and_the_checkpoint_holds_adapters_only(random_policy: str, tmp_path: Path) -> None:
    undisturbed = _train(random_policy, tmp_path, 2).module
    _train(random_policy, tmp_path, 1).trainer.save_checkpoint(tmp_path / "first.ckpt")
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all(is_adapter(name) for name in saved["state_dict"])
    resumed = _train(random_policy, tmp_path, 2, tmp_path / "first.ckpt").module
    for (name, ours), (_, theirs) in zip(resumed.hf_weights(), undisturbed.hf_weights(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_checkpoint_of_other_adapters_is_refused(random_policy: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.lora is None, but the checkpoint was written with .*'r': 4"):
        fit(random_policy, tmp_path, epochs=3, ckpt_path=checkpoint, module={"objective": GRPO()})


@pytest.mark.parametrize("targets", ["all-linear", ["c_attn"]])
def test_layers_whose_adapters_could_not_be_merged_are_refused(targets: Any) -> None:
    """GPT-2 keeps its matrices transposed, mixtures of experts keep theirs in tensors of three dimensions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    with pytest.raises(ValueError, match=r"model.lora.target_modules is .* is a Conv1D, no plain linear layer"):
        add_adapters(model, LoRA(r=4, target_modules=targets))


def test_experts_get_no_adapters() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"model.lora.target_modules is all-linear: .*experts.* no plain linear layer"):
        add_adapters(Qwen3MoeForCausalLM(config), LoRA(r=4))
    model = Qwen3MoeForCausalLM(config)
    add_adapters(model, LoRA(r=4, target_modules=["q_proj", "v_proj"]))
    assert len(list(merged(model.state_dict().items(), 1.0))) == len(Qwen3MoeForCausalLM(config).state_dict())


def test_the_reference_is_the_policy_without_adapters(random_policy: str, tmp_path: Path) -> None:
    """Loss and gradient are those of a penalty against a second model, which needs memory for one."""
    trained = _train(random_policy, tmp_path, 1, kl_coef=1.0, kl_target="reference")
    assert trained.module.reference is not None
    assert trained.module.reference.policy is trained.module.policy
    samples = trained.rollout.samples
    results = []
    for is_shared in (True, False):
        policy = Policy(_with_random_adapters(random_policy)).train()
        second = policy if is_shared else Policy(load_model(random_policy)).eval()
        step_loss = replace(
            trained.module.step_loss(samples), policy=policy, reference=Reference(second, has_adapters=is_shared)
        )
        loss, sums = step_loss(to_batch(samples.groups))
        loss.backward()
        gradients = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
        results.append((loss.detach(), sums["token/kl"], gradients))
    (ours, our_kl, our_gradients), (theirs, their_kl, their_gradients) = results
    assert our_kl > 0.01
    torch.testing.assert_close(our_kl, their_kl)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradients, their_gradients)
    assert all(is_adapter(name) for name in our_gradients)


def test_the_command_line_sets_adapters() -> None:
    cli = MaxKCLI(["--model.lora.r", "8", "--model.lora.target_modules", "[q_proj, v_proj]"], run=False)
    assert cli.model.lora == LoRA(r=8, target_modules=["q_proj", "v_proj"])
    assert MaxKCLI([], run=False).model.lora is None


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_gets_merged_weights(tmp_path: Path) -> None:
    """After two rollouts with real adapters the engine's log-probs are the trainer's, which the callback measures."""
    args = ["--config", "configs/tiny_vllm.yaml", "--trainer.default_root_dir", str(tmp_path), "--model.lora.r", "4"]
    args += ["--trainer.max_epochs", "2", "--validate_before_fit", "false", "--trainer.enable_progress_bar", "false"]
    args += ["--model.optimizer.lr", "1e-3", "--data.prompts_per_rollout", "4", "--model.kl_target", "reference"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, "-m", "maxk_lightning", "fit", *args]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    kl, gaps = ([event.value for event in curves.Scalars(tag)] for tag in ("train/kl", "rollout/logprob_gap"))
    assert kl[0] < 1e-6 < kl[-1]  # the adapters have come to do something
    assert max(gaps) < 1e-4
