"""The LightningModule: the policy, its max@k loss, and the optimizer step.

Legend: P prompts, N completions per prompt, B = P*N rows, T completion tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from maxk_lightning.losses import (
    BatchCounts,
    ClippedSurrogate,
    Normalisation,
    PolicyLoss,
    ScoreFunction,
    check_loss_fits,
    kl_k3,
    token_weights,
)
from maxk_lightning.metrics import RolloutMetrics
from maxk_lightning.objectives import Objective, OffPolicyMaxAtK, group_diagnostics, objective_at
from maxk_lightning.policy import Policy, TokenStats, load_model, resolve_policy
from maxk_lightning.policy.lora import LoRA, add_adapters, is_adapter, merged
from maxk_lightning.policy.sharding import load_sharded, whole
from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.training.batch import Batch, to_batch
from maxk_lightning.training.micro_batches import Plan, plan_by_prompts, plan_by_tokens
from maxk_lightning.training.reference import Reference
from maxk_lightning.types import Sampling

STOCHASTIC = "bf16_stochastic_round"
"Attribute and argument of torchao's optimizers: bfloat16 weights are rounded up or down at random, unbiased."
ONCE: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1}
"How to log what is known once per rollout or validation."
ZERO_CREDIT = 1e-12
"A group whose credits are all smaller than this gives no gradient."


class PolicyModule(LightningModule):
    """Trains a policy with any objective of `maxk_lightning.objectives`.

    One call of `training_step` is one optimizer step. It sees whole groups, so the credits of off-policy objectives are
    computed from the group's current sequence ratios at every PPO iteration, in the same forward pass as the loss.
    """

    def __init__(
        self,
        policy: str = "builtin",
        objective: Objective = OffPolicyMaxAtK(k=4),  # noqa: B008  (frozen)
        policy_loss: PolicyLoss | None = None,
        normalisation: Normalisation = "constant",
        kl_coef: float = 0.01,
        kl_target: Literal["old", "reference"] = "old",
        prompts_per_micro_batch: int | None = None,
        tokens_per_micro_batch: int | None = None,
        max_row_tokens: int | None = 2048,
        max_grad_norm: float | None = 1.0,
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=5e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe a training step; the policy is loaded when a Trainer asks for it.

        Args:
            policy: Directory, hub name (owner/name) or `builtin`.
            objective: Rewards -> credits.
            policy_loss: Credits -> loss per token. None: the clipped surrogate (paper, eq. 4) for advantages, the
                score-function form
                for credits that already contain the ratio.
            normalisation: How token losses are averaged: over each completion (`sequence`, GRPO), over all tokens
                (`token`,
                DAPO), or by max_new_tokens (`constant`, Dr. GRPO), the only one that keeps unbiased credits unbiased.
                The paper does not say which it used.
            kl_coef: beta of the KL penalty (eq. 4); 0 switches it off.
            kl_target: `old`: the policy that sampled, as in the paper, needs no extra model; `reference`: the initial
                policy.
            prompts_per_micro_batch: Groups per forward pass; None: all groups of the optimizer step at once. Changes
                memory, never the loss.
            tokens_per_micro_batch: Instead: tokens of packed rows per forward pass, padding included. A group that is
                larger is split; its ratios then take another forward pass. Changes memory, never the loss.
            max_row_tokens: The completions of a group share a copy of their prompt, in rows of at most so many tokens;
                1: every completion in a row of its own. Changes speed and memory, never the loss.
            max_grad_norm: Gradients are clipped to this norm; None: not at all.
            gradient_checkpointing: Recompute activations in the backward pass.
            lora: Train low-rank adapters only; None: train every weight. With adapters, `kl_target: reference` costs
                no second model.
            dtype: Of the weights and gradients. `bfloat16` halves them, and needs an optimizer that rounds
                stochastically (`bf16_stochastic_round` of `torchao.optim`): to the nearest, updates at the paper's
                learning rate vanish. Gradients of micro-batches are then summed in bfloat16 too. One GPU only. With
                `lora` it concerns the frozen weights alone, and any optimizer and strategy will do.
            optimizer: The paper's Adam with learning rate 5e-6.
            lr_scheduler: Stepped after every optimizer step; None: constant.

        Raises:
            ValueError: a value out of range, or a loss that does not fit the objective.
        """
        super().__init__()
        self.automatic_optimization = False  # one step sees several micro-batches with one global denominator
        self.policy_name = policy
        resolve_policy(policy)
        self.objective = objective
        self.policy_loss = policy_loss or (ScoreFunction() if objective.includes_ratio else ClippedSurrogate())
        check_loss_fits(self.policy_loss, objective)
        if kl_coef < 0:
            raise ValueError(f"model.kl_coef is {kl_coef}, must not be negative")
        if kl_target == "reference" and kl_coef == 0:
            raise ValueError("model.kl_target: reference has no effect with model.kl_coef 0")
        sizes = {
            "prompts_per_micro_batch": prompts_per_micro_batch,
            "tokens_per_micro_batch": tokens_per_micro_batch,
            "max_row_tokens": max_row_tokens,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"model.{name} is {size}, must be at least 1")
        if prompts_per_micro_batch is not None and tokens_per_micro_batch is not None:
            raise ValueError("model.tokens_per_micro_batch excludes model.prompts_per_micro_batch: set one to null")
        self.weigh = token_weights(normalisation)
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        self.prompts_per_micro_batch = prompts_per_micro_batch
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.max_row_tokens = max_row_tokens
        self.max_grad_norm = max_grad_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora
        self.dtype_name = dtype
        self.rounds_weights = dtype == "bfloat16" and lora is None
        self.make_optimizer = optimizer
        if self.rounds_weights and not getattr(optimizer([nn.Parameter(torch.zeros(1))]), STOCHASTIC, False):
            raise ValueError(f"model.dtype: bfloat16 needs a model.optimizer with {STOCHASTIC}: true (torchao.optim)")
        self.make_lr_scheduler = lr_scheduler
        self.policy: Policy | None = None
        self._reference: Reference | None = None  # no torch module: in no checkpoint and no optimizer
        self.train_metrics = RolloutMetrics()
        self.eval_metrics = RolloutMetrics()

    def configure_model(self) -> None:
        """Load the policy, and the reference policy where the KL penalty needs one."""
        if self.policy is not None:
            return
        self.policy = self._load_policy().train()  # Hugging Face loads in eval mode, where nothing would be recomputed
        if self.kl_target == "reference":
            policy = self._load_policy().requires_grad_(False).eval() if self.lora is None else self.policy
            self._reference = Reference(policy, has_adapters=self.lora is not None)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from the callables of the configuration.

        Raises:
            ValueError: bfloat16 weights on several ranks: copies would be rounded apart, and torchao fails on shards.
        """
        optimizer = self.make_optimizer([p for p in self._policy.parameters() if p.requires_grad])
        if self.rounds_weights and (self.trainer.world_size > 1 or self.device_mesh is not None):
            raise ValueError("model.dtype: bfloat16 trains all weights on one GPU only, without trainer.strategy")
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights under their Hugging Face names, tied ones included, adapters merged into theirs.

        Sharded ones are gathered one at a time: all ranks must iterate together.
        """
        held = self._policy.state_dict(keep_vars=True)
        weights = ((name.removeprefix("model."), whole(tensor.detach())) for name, tensor in held.items())
        return weights if self.lora is None else merged(weights, self.lora.scaling)

    def training_step(self, batch: Rollout, batch_idx: int) -> None:
        """One optimizer step over the groups of `batch`, micro-batch by micro-batch."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        counts = self._global_counts(batch)
        plan = self._plan(batch.groups)
        num_ratio_passes, num_passes, has_news = self._over_ranks(
            [len(plan.parts), len(plan.whole) + len(plan.parts), self._has_news(batch)], "max"
        )
        credits_of_parts, totals = self._credits_of_parts(plan, int(num_ratio_passes), batch.sampling)
        micro_batches = [self._to_batch(groups, batch.sampling) for groups in plan.whole]
        for part, credits_B in zip(plan.parts, credits_of_parts, strict=True):
            micro_batches.append(self._to_batch([part], batch.sampling, credits_B))
        for number, micro_batch in enumerate(self._padded(micro_batches, num_passes, batch.sampling), start=1):
            loss, sums = self._loss(
                micro_batch.to(self.device), counts, batch.sampling.temperature, is_known=not has_news
            )
            with nullcontext() if number == num_passes else self._block_sync():
                # Data-parallel strategies average gradients over ranks; ours are shares of one sum.
                self.manual_backward(loss * self.trainer.world_size)
            _add(totals, {"loss": loss.detach(), **sums})
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self._policy.parameters() if p.grad is not None])
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._policy.parameters(), self.max_grad_norm, grad_norm)
        optimizer.step()
        if (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()  # type: ignore[union-attr]
        self._log_step(totals, counts)
        self.log("train/grad_norm", whole(grad_norm))
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def _loss(
        self, batch: Batch, counts: BatchCounts, temperature: float, *, is_known: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch, and sums over its tokens, rows and groups for the log.

        `is_known`: the reference policy has been asked about these completions.
        """
        stats = self._policy(batch.rows, temperature)
        credits_B = batch.credits_B
        sums: dict[str, Tensor] = {}
        if credits_B is None:
            credits_PN, sums = self._credits(batch.rewards_PN, _log_ratios(stats, batch).view_as(batch.rewards_PN))
            credits_B = credits_PN.flatten()
        terms = self.policy_loss(stats.logprobs_BT, batch.behaviour_logprobs_BT, credits_B, batch.mask_BT)
        weights_BT = self.weigh(batch.mask_BT, counts)
        target_logprobs_BT = batch.behaviour_logprobs_BT
        if self._reference is not None:
            target_logprobs_BT = self._reference.logprobs(batch, temperature, is_known=is_known)
        kl_BT = kl_k3(stats.logprobs_BT, target_logprobs_BT) * batch.mask_BT
        loss = (terms.loss_BT * weights_BT).sum()
        if self.kl_coef > 0:
            loss = loss + self.kl_coef * (kl_BT * weights_BT).sum() / counts.num_completions
        sums["token/kl"] = kl_BT.detach().sum()
        sums["token/entropy"] = stats.entropies_BT.sum()
        sums["token/clip_fraction"] = terms.is_clipped_BT.sum()
        return loss, sums

    def _credits(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Credits of whole groups, and sums over groups for the log."""
        objective = objective_at(self.objective, self._progress)
        credits_PN = objective(rewards_PN, log_ratios_PN) if len(rewards_PN) > 0 else rewards_PN
        diagnostics = group_diagnostics(rewards_PN, log_ratios_PN, getattr(objective, "k", 1))
        return credits_PN, {
            "group/log_ratio_std": diagnostics.log_ratio_std_P.nansum(),
            "group/log_normaliser": diagnostics.log_normaliser_P.nansum(),
            "group/effective_subsets_fraction": diagnostics.effective_fraction_P.nansum(),
            "group/zero_credit_fraction": (credits_PN.abs() < ZERO_CREDIT).all(1).sum(),
            "group/too_small_fraction": diagnostics.is_too_small_P.sum(),
        }

    def on_train_epoch_end(self) -> None:
        """Let go of what the reference policy said of this rollout."""
        if self._reference is not None:
            self._reference.forget()

    def validation_step(self, batch: Rollout, batch_idx: int) -> None:
        """Count scored validation samples; the curve is logged when the epoch ends."""
        self.eval_metrics.update(batch.rewards_PN, batch.values_of)

    def test_step(self, batch: Rollout, batch_idx: int) -> None:
        """Count scored test samples."""
        self.eval_metrics.update(batch.rewards_PN, batch.values_of)

    def predict_step(self, batch: Rollout, batch_idx: int) -> list[dict[str, Any]]:
        """One record of the completions format per group; Lightning takes no frozen dataclass here."""
        return [
            {"id": group.problem.id, "completions": [completion.text for completion in group.completions]}
            for group in batch.groups
        ]

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._log_metrics("val", self.eval_metrics)

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._log_metrics("test", self.eval_metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the policy that the weights belong to, for `export`; of a policy with adapters keep these alone."""
        checkpoint["policy"] = self.policy_name
        if self.lora is not None:
            checkpoint["lora"] = asdict(self.lora)
            if not self._restores_in_place:
                weights = checkpoint["state_dict"]
                checkpoint["state_dict"] = {name: weights[name] for name in weights if is_adapter(name)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen weights back that the checkpoint leaves out.

        Raises:
            ValueError: the checkpoint was written with other adapters, or none, or for another policy.
        """
        lora = None if self.lora is None else asdict(self.lora)
        if checkpoint.get("lora") != lora:
            raise ValueError(f"model.lora is {lora}, but the checkpoint was written with {checkpoint.get('lora')}")
        if lora is not None and checkpoint["policy"] != self.policy_name:
            raise ValueError(
                f"model.policy is {self.policy_name}, the checkpoint has adapters of {checkpoint['policy']}"
            )
        if lora is not None and not self._restores_in_place:
            frozen = {name: weight for name, weight in self.state_dict().items() if not is_adapter(name)}
            checkpoint["state_dict"] = frozen | checkpoint["state_dict"]

    def log_rollout(self, rollout: Rollout) -> None:
        """Log `train/...` of a fresh rollout."""
        self.train_metrics.update(rollout.rewards_PN, rollout.values_of)
        self._log_metrics("train", self.train_metrics)

    @property
    def _policy(self) -> Policy:
        assert self.policy is not None, "configure_model has not run"
        return self.policy

    @property
    def _restores_in_place(self) -> bool:
        """Whether checkpoints go through torch.distributed.checkpoint, which restores all weights or none."""
        return self.trainer.strategy.restore_checkpoint_after_setup

    @property
    def _progress(self) -> float:
        """Share of the planned rollouts that is done, in [0, 1)."""
        return self.current_epoch / max(1, self.trainer.max_epochs or 1)

    def _load_policy(self) -> Policy:
        """The policy as the strategy holds it: whole, or this rank's share of every weight."""
        if self.device_mesh is None:
            return self._build_policy()
        strategy = self.trainer.strategy
        is_bf16 = self.trainer.precision == "bf16-mixed"
        return load_sharded(self._build_policy, self.device_mesh["data_parallel"], strategy.root_device, is_bf16)

    def _build_policy(self, has_weights: bool = True) -> Policy:
        model = load_model(self.policy_name, getattr(torch, self.dtype_name), has_weights=has_weights)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.lora is not None:
            add_adapters(model, self.lora)
        return Policy(model)

    def _plan(self, groups: Sequence[Group]) -> Plan:
        if self.tokens_per_micro_batch is None:
            return plan_by_prompts(groups, self.prompts_per_micro_batch)
        return plan_by_tokens(groups, self.tokens_per_micro_batch, self.max_row_tokens)

    def _credits_of_parts(
        self, plan: Plan, num_passes: int, sampling: Sampling
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Credits of the parts of split groups, and sums over these groups for the log.

        Credits know the ratios of the whole group, from passes without gradients. They carry no gradient anyway, so
        that of the parts adds up to the group's.
        """
        log_ratios: list[Tensor] = []
        batches = [self._to_batch([part], sampling) for part in plan.parts]
        for batch in self._padded(batches, num_passes, sampling):
            on_device = batch.to(self.device)
            with torch.no_grad():
                log_ratios.append(_log_ratios(self._policy(on_device.rows, sampling.temperature), on_device))
        credits_of_parts: list[Tensor] = []
        totals: dict[str, Tensor] = {}
        start = 0
        for group, num_parts in zip(plan.split, plan.num_parts, strict=True):
            rewards_1N = torch.tensor([group.rewards], dtype=torch.float64, device=self.device)
            parts = log_ratios[start : start + num_parts]
            credits_1N, sums = self._credits(rewards_1N, torch.cat(parts)[None])
            credits_of_parts += torch.split(credits_1N[0], [len(part) for part in parts])
            _add(totals, sums)
            start += num_parts
        return credits_of_parts, totals

    def _to_batch(self, groups: Sequence[Group], sampling: Sampling, credits_B: Tensor | None = None) -> Batch:
        return to_batch(groups, self.max_row_tokens, sampling.num_completions, credits_B)

    def _padded(self, batches: list[Batch], number: float, sampling: Sampling) -> list[Batch]:
        """All ranks communicate in every pass: one that has no groups left computes with none."""
        return batches + [self._to_batch([], sampling)] * (int(number) - len(batches))

    def _block_sync(self) -> AbstractContextManager[None]:
        """Leave gradients on this rank: they are summed over ranks once, in the last micro-batch."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _has_news(self, batch: Rollout) -> bool:
        return self._reference is not None and not self._reference.knows(batch.completions)

    def _global_counts(self, batch: Rollout) -> BatchCounts:
        """Denominators of the whole optimizer step: all micro-batches, all ranks."""
        num_tokens = sum(len(completion.token_ids) for completion in batch.completions)
        num_prompts, total_tokens = self._over_ranks([len(batch.groups), num_tokens], "sum")
        return BatchCounts(
            num_prompts=int(num_prompts),
            num_completions=batch.sampling.num_completions,
            total_tokens=int(total_tokens),
            max_tokens=batch.sampling.max_new_tokens,
        )

    def _over_ranks(self, numbers: Sequence[float], reduction: Literal["sum", "max"]) -> list[float]:
        reduced = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            reduced = self.trainer.strategy.reduce(reduced, reduce_op=reduction)
        return [float(number) for number in reduced]

    def _log_step(self, totals: dict[str, Tensor], counts: BatchCounts) -> None:
        """Turn sums over micro-batches and ranks into means; metrics.md says what each tag means."""
        denominators = {"token": max(1, counts.total_tokens), "group": counts.num_prompts, "": 1}
        names = sorted(totals)  # the same order on all ranks
        sums = self._over_ranks([float(totals[name]) for name in names], "sum")
        for name, value in zip(names, sums, strict=True):
            unit, _, tag = name.rpartition("/")
            self.log(f"train/{tag}", value / denominators[unit], prog_bar=tag == "loss")

    def _log_metrics(self, prefix: str, metrics: RolloutMetrics) -> None:
        """Log computed metrics; computing is already a sum over ranks."""
        values = metrics.compute()
        metrics.reset()
        for tag, value in values.items():
            self.log(f"{prefix}/{tag}", value, prog_bar=tag == "reward", sync_dist=True, **ONCE)


def _log_ratios(stats: TokenStats, batch: Batch) -> Tensor:
    """log pi - log pi_old of whole completions [B], float64, without gradient."""
    return (stats.logprobs_BT - batch.behaviour_logprobs_BT).detach().double().sum(1)


def _add(totals: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0) + value
