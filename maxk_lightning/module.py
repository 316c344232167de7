"""The LightningModule: holds the policy, and makes an optimizer step of whole groups."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from maxk_lightning.checkpoints import check_policy
from maxk_lightning.losses import (
    AdaptiveEntropy,
    EngineCorrection,
    EntropyBonus,
    Normalisation,
    PolicyLoss,
    loss_for,
    token_weights,
)
from maxk_lightning.metrics import RolloutMetrics
from maxk_lightning.objectives import MaxAtK, Objective, objective_at
from maxk_lightning.policy import Policy, build_policy, resolve_policy
from maxk_lightning.policy.architectures import Attention
from maxk_lightning.policy.lora import LoRA, check_adapters, keep_adapters, merged
from maxk_lightning.policy.sharding import load_sharded, whole
from maxk_lightning.rollouts.ranks import Ranks, ranks_of
from maxk_lightning.rollouts.refill import has_credit
from maxk_lightning.rollouts.rollout import SAMPLE_VALUES, Group, Samples
from maxk_lightning.rollouts.weight_sync import Weights
from maxk_lightning.training.guard import StepGuard
from maxk_lightning.training.old_policy import OldPolicy
from maxk_lightning.training.reference import Reference
from maxk_lightning.training.step import StepLoss, Sums, add, count

STOCHASTIC = "bf16_stochastic_round"
"Attribute and argument of torchao's optimizers: bfloat16 weights are rounded up or down at random, unbiased."
ONCE: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1}
"How to log what is known once per rollout or validation."


class PolicyModule(LightningModule):
    """Trains a policy with any objective of `maxk_lightning.objectives`.

    One call of `training_step` is one optimizer step. It sees whole groups, so the credits of off-policy objectives are
    computed from the group's current sequence ratios at every PPO iteration, in the same forward pass as the loss.
    """

    def __init__(
        self,
        policy: str = "builtin",
        objective: Objective = MaxAtK(k=4),  # noqa: B008  (frozen)
        policy_loss: PolicyLoss | None = None,
        normalisation: Normalisation = "constant",
        old_logprobs: Literal["trainer", "engine"] = "trainer",
        engine_correction: EngineCorrection | Literal["auto"] | None = "auto",
        kl_coef: float = 0.01,
        kl_target: Literal["old", "reference"] = "old",
        entropy_coef: float | AdaptiveEntropy = 0.0,
        prompts_per_micro_batch: int | None = None,
        tokens_per_micro_batch: int | None = None,
        max_row_tokens: int | None = 2048,
        max_grad_norm: float | None = 1.0,
        gradient_checkpointing: bool = False,
        attn_implementation: Attention | None = None,
        lora: LoRA | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=5e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe a training step; the policy is loaded when a Trainer asks for it.

        Args:
            policy: Directory, hub name (owner/name) or `builtin`.
            objective: Rewards -> credits.
            policy_loss: Credits -> loss per token. None: one bounded ratio per token (`CISPO`), the score-function form
                for credits that already contain the ratio. The paper's eq. 4 is `ClippedSurrogate`.
            normalisation: How token losses are averaged: over each completion (`sequence`, GRPO), over all tokens
                (`token`, DAPO), or by max_new_tokens (`constant`, Dr. GRPO), the only one that keeps unbiased credits
                unbiased. The paper does not say which it used.
            old_logprobs: Whose log-probs are used as pi_old's: the `trainer`'s at the start of the rollout, so that
                ratios are exactly 1 at its first step, or the `engine`'s as it sampled. Precision noise of an engine
                adds up over a completion: .02 nats per token are .6 nats over 110 tokens.
            engine_correction: Weights of the token losses for what the engine samples differently from pi_old, with
                `old_logprobs: trainer`. `auto`: `TruncatedWeights` for rollouts from older weights, and where the
                log-probs of both sides differ by more than 0.001 right after a push; none where they agree.
            kl_coef: beta of the KL penalty (eq. 4); 0 switches it off.
            kl_target: `old`: pi_old, as in the paper, needs no extra model; `reference`: the initial policy.
            entropy_coef: Weight of a bonus for the policy's entropy, in nats per token, averaged over tokens as the KL
                penalty is; 0: none. With `AdaptiveEntropy` it looks for the weight that keeps a target.
            prompts_per_micro_batch: Groups per forward pass; None: all groups of the optimizer step at once. Changes
                memory, never the loss.
            tokens_per_micro_batch: Instead: tokens of packed rows per forward pass, padding included. A group that is
                larger is split; its ratios then take another forward pass. Changes memory, never the loss.
            max_row_tokens: The completions of a group share a copy of their prompt, in rows of at most this many
                tokens; 1: every completion in a row of its own. Changes speed and memory, never the loss.
            max_grad_norm: Gradients are clipped to this norm; None: not at all.
            gradient_checkpointing: Recompute activations in the backward pass.
            attn_implementation: None: causal kernels on a row per completion, or what the model needs instead.
                `flex_attention`: on the packed rows, where prompts attend once and sliding windows need no mask; for
                long prompts on a GPU. Changes speed and memory, never the loss.
            lora: Train low-rank adapters only; None: train every weight. With adapters, `kl_target: reference` costs
                no second model.
            dtype: Type of the weights and gradients. `bfloat16` halves their memory, and needs an optimizer that rounds
                stochastically (`bf16_stochastic_round` of `torchao.optim`): rounded to the nearest, updates at the
                paper's learning rate vanish. Gradients of micro-batches are then summed in bfloat16 too. One GPU only.
                With `lora` it is the type of the frozen weights alone, and any optimizer and strategy works.
            optimizer: The paper's Adam with learning rate 5e-6.
            lr_scheduler: Stepped after every optimizer step, `ReduceLROnPlateau` after every validation; None:
                constant. `maxk_lightning.schedules.WarmupCosine` is warm-up and cosine.

        Raises:
            ValueError: a value out of range, or a loss that does not fit the objective.
        """
        super().__init__()
        self.automatic_optimization = False  # one step sees several micro-batches with one global denominator
        self.policy_name = policy
        resolve_policy(policy)
        self.objective = objective
        self.policy_loss = loss_for(policy_loss, objective)
        _check_penalty(kl_coef, kl_target)
        if old_logprobs == "engine" and engine_correction not in ("auto", None):
            raise ValueError("model.engine_correction has no effect with model.old_logprobs: engine")
        _check_sizes(prompts_per_micro_batch, tokens_per_micro_batch, max_row_tokens)
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(
                f"model.max_grad_norm is {max_grad_norm}, must be positive; null: gradients are not clipped"
            )
        self.token_weights = token_weights(normalisation)
        self.old = OldPolicy(engine_correction) if old_logprobs == "trainer" else None
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        self.entropy_bonus = EntropyBonus(entropy_coef)
        self.prompts_per_micro_batch = prompts_per_micro_batch
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.max_row_tokens = max_row_tokens
        self.max_grad_norm = max_grad_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.attn_implementation = attn_implementation
        self.lora = lora
        self.dtype_name = dtype
        self.has_bf16_weights = dtype == "bfloat16" and lora is None
        self.optimizer_from = optimizer
        self.lr_scheduler_from = lr_scheduler
        if self.has_bf16_weights and not _rounds_stochastically(optimizer):
            raise ValueError(f"model.dtype: bfloat16 needs a model.optimizer with {STOCHASTIC}: true (torchao.optim)")
        self.guard = StepGuard(includes_ratio=objective.includes_ratio)
        self.policy: Policy | None = None
        self.reference: Reference | None = None  # no torch module: in no checkpoint and no optimizer
        self.train_metrics = RolloutMetrics(SAMPLE_VALUES)
        self.eval_metrics = RolloutMetrics(SAMPLE_VALUES)

    def configure_model(self) -> None:
        """Load the policy, and the reference policy where the KL penalty needs one."""
        if self.policy is not None:
            return
        self.policy = _load_policy(self).train()  # Hugging Face loads in eval mode, where nothing would be recomputed
        if self.kl_target == "reference":
            policy = _load_policy(self).requires_grad_(False).eval() if self.lora is None else self.policy
            self.reference = Reference(policy, has_adapters=self.lora is not None)

    def configure_optimizers(self) -> Any:
        """Make optimizer and schedule from the callables of the configuration.

        Raises:
            ValueError: bfloat16 weights on several ranks: copies would be rounded apart, and torchao fails on shards.
        """
        optimizer = self.optimizer_from([p for p in self._policy.parameters() if p.requires_grad])
        if self.has_bf16_weights and (self.trainer.world_size > 1 or self.device_mesh is not None):
            raise ValueError("model.dtype: bfloat16 trains all weights on one GPU only, without trainer.strategy")
        if self.lr_scheduler_from is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler_from(optimizer)}

    def training_step(self, samples: Samples, batch_idx: int) -> None:
        """Make one optimizer step over this rank's samples of it, micro-batch by micro-batch."""
        optimizer: Any = self.optimizers()
        step_loss = self.step_loss(samples)
        micro_batches, sums = step_loss.cut(samples, self._ranks)
        for number, micro_batch in enumerate(micro_batches, start=1):
            loss, more = step_loss(micro_batch.to(self.device))
            with self._sync_only_if(number == len(micro_batches)):
                # Data-parallel strategies average gradients over ranks; ours are shares of one sum.
                self.manual_backward(loss * self._ranks.world_size)
            add(sums, more)
        self._update(optimizer, step_loss, sums)

    def step_loss(self, samples: Samples) -> StepLoss:
        """Return the loss of a step of which the samples are this rank's share; all ranks must call this together."""
        reference, old, ranks = self.reference, self.old, self._ranks
        return StepLoss(
            policy=self._policy,
            objective=self.objective_of(self.current_epoch),
            policy_loss=self.policy_loss,
            token_weights=self.token_weights,
            counts=count(samples, ranks),
            temperature=samples.sampling.temperature,
            kl_coef=self.kl_coef,
            entropy_coef=self.entropy_bonus.coef,
            reference=reference,
            has_reference_answered=reference is not None and ranks.all_true(reference.knows(samples.completions)),
            old=old,
            is_old_known=old is not None and ranks.all_true(old.knows(samples.completions)),
            max_row_tokens=self.max_row_tokens,
            max_prompts=self.prompts_per_micro_batch,
            max_tokens=self.tokens_per_micro_batch,
        )

    def idle(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each group gets no credit and nothing else is computed for it: no KL penalty, no entropy bonus."""
        if self.kl_coef > 0 or self.entropy_bonus.is_on:
            return [False] * len(groups)
        return [not credited for credited in has_credit(self.objective_of(self.current_epoch), groups)]

    def on_train_epoch_end(self) -> None:
        """Drop the log-probs of this rollout under the reference and the old policy."""
        for policy in (self.reference, self.old):
            if policy is not None:
                policy.forget()

    def validation_step(self, samples: Samples, batch_idx: int) -> None:
        """Count scored validation samples; the curve is logged when the epoch ends."""
        self.eval_metrics.update(samples.rewards_PN, samples.values, samples.behaviours_PN)

    def test_step(self, samples: Samples, batch_idx: int) -> None:
        """Count scored test samples."""
        self.eval_metrics.update(samples.rewards_PN, samples.values, samples.behaviours_PN)

    def predict_step(self, samples: Samples, batch_idx: int) -> list[dict[str, Any]]:
        """Make one record of the completions format per group; Lightning takes no frozen dataclass here."""
        return [
            {"id": group.problem.id, "completions": [completion.text for completion in group.completions]}
            for group in samples.groups
        ]

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._log_metrics("val", self.eval_metrics)

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._log_metrics("test", self.eval_metrics)

    def log_samples(self, samples: Samples) -> None:
        """Log `train/...` of a fresh rollout."""
        self.train_metrics.update(samples.rewards_PN, samples.values, samples.behaviours_PN)
        self._log_metrics("train", self.train_metrics)

    def note_old(self, steps: Sequence[Samples]) -> None:
        """Note the old log-probs of a rollout in a pass without gradient; all ranks must call this together.

        Args:
            steps: This rank's samples of every optimizer step, in order; the first step notes its own, at no cost.
        """
        if self.old is None:
            return
        with self.trainer.precision_plugin.forward_context(), torch.no_grad():
            for samples in steps[1:]:
                step_loss = self.step_loss(samples)
                for batch in step_loss.cut(samples, self._ranks)[0]:
                    step_loss.note_old(batch.to(self.device))

    def weights(self) -> Weights:
        """Return the current policy, for a rollout engine."""
        return Weights(policy=self._policy, named_tensors=self.hf_weights, step=self.global_step)

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the policy's weights under Hugging Face names, tied ones included, adapters merged into theirs.

        Sharded ones are gathered one at a time: all ranks must iterate together.
        """
        held = self._policy.state_dict(keep_vars=True)
        weights = ((name.removeprefix("model."), whole(tensor.detach())) for name, tensor in held.items())
        return weights if self.lora is None else merged(weights, self.lora.scaling)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the policy that the weights belong to, for `export`; of a policy with adapters keep only these."""
        checkpoint |= {"policy": self.policy_name, "entropy_coef": self.entropy_bonus.coef}
        if self.lora is not None:
            # torch.distributed.checkpoint restores all weights or none
            has_frozen_weights = self.trainer.strategy.restore_checkpoint_after_setup
            keep_adapters(checkpoint, self.lora, has_frozen_weights=has_frozen_weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen weights back that the checkpoint leaves out.

        Raises:
            CheckpointMismatchError: the checkpoint was written with other adapters, or none, or for another policy.
        """
        check_adapters(checkpoint, self.lora)
        check_policy(checkpoint.get("policy", self.policy_name), self.policy_name)
        self.entropy_bonus.restore(checkpoint.get("entropy_coef"))
        if self.lora is not None and not self.trainer.strategy.restore_checkpoint_after_setup:
            checkpoint["state_dict"] = self.state_dict() | checkpoint["state_dict"]

    def objective_of(self, index: int) -> Objective:
        """Return the objective in force for a rollout, by the share of the planned rollouts before it."""
        return objective_at(self.objective, index / max(1, self.trainer.max_epochs or 1))

    @property
    def _policy(self) -> Policy:
        assert self.policy is not None, "configure_model has not run"
        return self.policy

    @property
    def _ranks(self) -> Ranks:
        return ranks_of(self.trainer)

    def _sync_only_if(self, is_last: bool) -> AbstractContextManager[None]:
        """Sum gradients over ranks only in the last micro-batch; until then they stay on this rank."""
        strategy = self.trainer.strategy
        if is_last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _update(self, optimizer: Any, step_loss: StepLoss, sums: Sums) -> None:
        """Clip gradients, step optimizer and schedule, and log the step; one that is not finite changes no weight."""
        parameters = list(self._policy.parameters())
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        values = step_loss.means(sums, self._ranks)
        is_allowed = self.guard.allows(values["loss"], float(whole(grad_norm)))
        self.guard.watch(values)
        values |= self.entropy_bonus.after(values["entropy"])
        if not is_allowed:
            optimizer.zero_grad(set_to_none=True)  # an optimizer leaves such weights out, their moments included
        elif self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, grad_norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])  # of this step: the schedule moves it below
        with torch.autocast(self.device.type, enabled=False):  # some optimizers multiply matrices
            optimizer.step()
        optimizer.zero_grad()  # the rollout that follows needs their memory
        scheduler = self.lr_schedulers()
        if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):  # that waits for validations
            scheduler.step()  # type: ignore[union-attr]
        for tag, value in (values | {"skipped_steps": float(not is_allowed)}).items():
            self.log(f"train/{tag}", value, prog_bar=tag == "loss")
        self.log("train/grad_norm", whole(grad_norm))

    def _log_metrics(self, prefix: str, metrics: RolloutMetrics) -> None:
        """Log computed metrics; computing is already a sum over ranks."""
        values = metrics.compute()
        metrics.reset()
        for tag, value in values.items():
            self.log(f"{prefix}/{tag}", value, prog_bar=tag == "reward", sync_dist=True, **ONCE)


def _load_policy(module: PolicyModule) -> Policy:
    """The policy as the strategy holds it: whole, or this rank's share of every weight."""

    def build(has_weights: bool = True) -> Policy:
        dtype = getattr(torch, module.dtype_name)
        settings = module.lora, module.gradient_checkpointing, has_weights, module.attn_implementation
        return build_policy(module.policy_name, dtype, *settings)

    if module.device_mesh is None:
        return build()
    is_bf16 = module.trainer.precision == "bf16-mixed"
    device = module.trainer.strategy.root_device
    return load_sharded(build, module.device_mesh["data_parallel"], device, is_bf16)


def _check_penalty(kl_coef: float, kl_target: str) -> None:
    if kl_coef < 0:
        raise ValueError(f"model.kl_coef is {kl_coef}, must not be negative")
    if kl_target == "reference" and kl_coef == 0:
        raise ValueError("model.kl_target: reference has no effect with model.kl_coef 0")


def _check_sizes(prompts: int | None, tokens: int | None, row_tokens: int | None) -> None:
    sizes = {"prompts_per_micro_batch": prompts, "tokens_per_micro_batch": tokens, "max_row_tokens": row_tokens}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"model.{name} is {size}, must be at least 1")
    if prompts is not None and tokens is not None:
        raise ValueError("model.tokens_per_micro_batch excludes model.prompts_per_micro_batch: set one to null")


def _rounds_stochastically(optimizer: OptimizerCallable) -> bool:
    """Whether an optimizer rounds bfloat16 weights at random, which only an instance can tell."""
    return bool(getattr(optimizer([nn.Parameter(torch.zeros(1))]), STOCHASTIC, False))
