"""The LightningModule: the policy, its max@k loss, and the optimizer step.

Legend: P prompts, N completions per prompt, B = P*N rows, T completion tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from maxk_lightning import losses
from maxk_lightning.experience import Batch, Group, Rollout, to_batch
from maxk_lightning.losses import ClippedSurrogate, PolicyLoss, ScoreFunction
from maxk_lightning.metrics import RolloutMetrics
from maxk_lightning.objectives import Objective, OffPolicyMaxAtK, objective_at
from maxk_lightning.policy import Policy, load_model, resolve_policy

Normalisation = Literal["sequence", "token", "constant"]
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
        loss: PolicyLoss | None = None,
        normalisation: Normalisation = "constant",
        kl_coef: float = 0.01,
        kl_target: Literal["old", "reference"] = "old",
        prompts_per_micro_batch: int | None = None,
        max_grad_norm: float | None = 1.0,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=5e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe a training step; the policy is loaded when a Trainer asks for it.

        Args:
            policy: Directory, hub name (owner/name) or `builtin`.
            objective: Rewards -> credits.
            loss: Credits -> loss per token. None: the clipped surrogate (paper, eq. 4) for advantages, the score-function form
                for credits that already contain the ratio.
            normalisation: How token losses are averaged: over each completion (`sequence`, GRPO), over all tokens (`token`,
                DAPO), or by max_new_tokens (`constant`, Dr. GRPO), the only one that keeps unbiased credits unbiased.
                The paper does not say which it used.
            kl_coef: beta of the KL penalty (eq. 4); 0 switches it off.
            kl_target: `old`: the policy that sampled, as in the paper, needs no extra model; `reference`: the initial policy.
            prompts_per_micro_batch: Groups per forward pass; None: all groups of the optimizer step at once. Changes memory,
                never the loss.
            max_grad_norm: Gradients are clipped to this norm; None: not at all.
            gradient_checkpointing: Recompute activations in the backward pass.
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
        self.loss = loss or (ScoreFunction() if objective.includes_ratio else ClippedSurrogate())
        if objective.includes_ratio != self.loss.accepts_ratio_credits and objective.includes_ratio:
            raise ValueError(
                f"model.loss: {type(self.loss).__name__} multiplies credits by the ratio, which the credits of "
                f"{type(objective).__name__} already contain; leave model.loss out or use ScoreFunction"
            )
        if kl_coef < 0:
            raise ValueError(f"model.kl_coef is {kl_coef}, must not be negative")
        if kl_target == "reference" and kl_coef == 0:
            raise ValueError("model.kl_target: reference has no effect with model.kl_coef 0")
        if prompts_per_micro_batch is not None and prompts_per_micro_batch < 1:
            raise ValueError(f"model.prompts_per_micro_batch is {prompts_per_micro_batch}, must be at least 1")
        self.normalisation = normalisation
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        self.prompts_per_micro_batch = prompts_per_micro_batch
        self.max_grad_norm = max_grad_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.policy: Policy | None = None
        self._unregistered: dict[str, nn.Module] = {}  # the reference policy: in no checkpoint and no optimizer
        self.train_metrics = RolloutMetrics()
        self.eval_metrics = RolloutMetrics()

    def configure_model(self) -> None:
        """Load the policy, and the reference policy where the KL penalty needs one."""
        if self.policy is not None:
            return
        model = load_model(self.policy_name)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy = Policy(model)
        if self.kl_target == "reference":
            self._unregistered["reference"] = Policy(load_model(self.policy_name)).requires_grad_(False).eval()

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from the callables of the configuration."""
        optimizer = self.make_optimizer(self._policy.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights under their Hugging Face names, tied ones included."""
        return ((name.removeprefix("model."), tensor) for name, tensor in self._policy.state_dict().items())

    def training_step(self, batch: Rollout, batch_idx: int) -> None:
        """One optimizer step over the groups of `batch`, micro-batch by micro-batch."""
        self._policy.train()
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        num_tokens = sum(len(completion.token_ids) for completion in batch.completions)
        num_prompts, num_tokens = self._sum_over_ranks(len(batch.groups)), self._sum_over_ranks(num_tokens)
        weigh = self._token_weights(num_prompts, num_tokens, batch)
        totals: dict[str, Tensor] = {}
        for groups in _split(batch.groups, self.prompts_per_micro_batch):
            micro_batch = to_batch(groups).to(self.device)
            loss, sums = self._loss(micro_batch, weigh, batch.sampling.temperature)
            self.manual_backward(
                loss * self.trainer.world_size
            )  # data-parallel strategies average gradients over ranks
            for name, value in {"loss": loss.detach(), **sums}.items():
                totals[name] = totals.get(name, 0) + value
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self._policy.parameters() if p.grad is not None])
        if self.max_grad_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.max_grad_norm, gradient_clip_algorithm="norm")
        optimizer.step()
        if (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()  # type: ignore[union-attr, call-arg]
        self._log_step(totals, num_prompts, num_tokens, batch.sampling.num_completions)
        self.log("train/grad_norm", grad_norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def _loss(self, batch: Batch, weigh: Callable[[Tensor], Tensor], temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch, and sums over its tokens, rows and groups for the log."""
        stats = self._policy(batch.input_ids_BL, batch.completion_mask_BL, batch.mask_BT, temperature)
        log_ratios_BT = (stats.logprobs_BT - batch.behaviour_logprobs_BT).detach()
        log_ratios_PN = log_ratios_BT.double().sum(1).view_as(batch.rewards_PN)
        credits_PN = objective_at(self.objective, self._progress)(batch.rewards_PN, log_ratios_PN)
        terms = self.loss(stats.logprobs_BT, batch.behaviour_logprobs_BT, credits_PN.flatten(), batch.mask_BT)
        weights_BT = weigh(batch.mask_BT)
        loss = (terms.loss_BT * weights_BT).sum()
        kl_BT = losses.kl_k3(stats.logprobs_BT, self._kl_target_logprobs(batch, temperature)) * batch.mask_BT
        if self.kl_coef > 0:
            loss = loss + self.kl_coef * (kl_BT * weights_BT).sum() / batch.rewards_PN.shape[1]
        ratios_PN = log_ratios_PN.exp()
        sums = {
            "token/kl": kl_BT.detach().sum(),
            "token/entropy": stats.entropies_BT.sum(),
            "token/clip_fraction": terms.is_clipped_BT.sum(),
            "row/log_ratio": log_ratios_PN.sum(),
            "row/log_ratio_squared": log_ratios_PN.square().sum(),
            "group/effective_samples": (ratios_PN.sum(1).square() / ratios_PN.square().sum(1)).sum(),
            "group/zero_credit_fraction": (credits_PN.abs() < ZERO_CREDIT).all(1).sum(),
        }
        return loss, sums

    def validation_step(self, batch: Rollout, batch_idx: int) -> None:
        """Count scored validation samples; the curve is logged when the epoch ends."""
        self.eval_metrics.update(batch.rewards_PN, batch.values_of)

    def test_step(self, batch: Rollout, batch_idx: int) -> None:
        """Count scored test samples."""
        self.eval_metrics.update(batch.rewards_PN, batch.values_of)

    def predict_step(self, batch: Rollout, batch_idx: int) -> Rollout:
        """Hand the completions on to whatever writes predictions."""
        return batch

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._log_metrics("val", self.eval_metrics)

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._log_metrics("test", self.eval_metrics)

    def log_rollout(self, rollout: Rollout) -> None:
        """Log `train/...` of a fresh rollout."""
        self.train_metrics.update(rollout.rewards_PN, rollout.values_of)
        self._log_metrics("train", self.train_metrics)

    def transfer_batch_to_device(self, batch: Rollout, device: torch.device, dataloader_idx: int) -> Rollout:
        """Leave rollouts on the host: `training_step` moves one micro-batch at a time."""
        return batch

    @property
    def _policy(self) -> Policy:
        assert self.policy is not None, "configure_model has not run"
        return self.policy

    @property
    def _progress(self) -> float:
        """Share of the planned rollouts that is done, in [0, 1)."""
        return self.current_epoch / max(1, self.trainer.max_epochs or 1)

    def _kl_target_logprobs(self, batch: Batch, temperature: float) -> Tensor:
        if self.kl_target == "old":
            return batch.behaviour_logprobs_BT
        reference = self._unregistered["reference"].to(self.device)
        with torch.no_grad():
            logprobs_BT: Tensor = reference(
                batch.input_ids_BL, batch.completion_mask_BL, batch.mask_BT, temperature
            ).logprobs_BT
        return logprobs_BT

    def _token_weights(self, num_prompts: int, num_tokens: int, batch: Rollout) -> Callable[[Tensor], Tensor]:
        """mask_BT -> weights_BT of the token losses, by denominators of the whole optimizer step."""
        sampling = batch.sampling
        if self.normalisation == "sequence":
            return lambda mask_BT: losses.weights_by_sequence(mask_BT, num_prompts)
        if self.normalisation == "token":
            return lambda mask_BT: losses.weights_by_token(mask_BT, num_tokens, sampling.num_completions)
        return lambda mask_BT: losses.weights_by_constant(mask_BT, num_prompts, sampling.max_new_tokens)

    def _sum_over_ranks(self, number: int) -> int:
        if self.trainer.world_size == 1:
            return number
        total = self.trainer.strategy.reduce(torch.tensor(number, device=self.device), reduce_op="sum")
        return int(total)

    def _log_step(self, totals: dict[str, Tensor], num_prompts: int, num_tokens: int, num_completions: int) -> None:
        """Turn sums over micro-batches and ranks into means; tags and meanings are listed in the README."""
        num_rows = num_prompts * num_completions
        counts = {"token": num_tokens, "row": num_rows, "group": num_prompts}
        names = sorted(totals)
        sums = torch.stack([torch.as_tensor(totals[name], dtype=torch.float64, device=self.device) for name in names])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        means = {}
        for name, value in zip(names, sums.tolist(), strict=True):
            unit, _, tag = name.rpartition("/")
            means[tag] = value / counts.get(unit, 1)
        variance = means.pop("log_ratio_squared") - means["log_ratio"] ** 2
        means["log_ratio_std"] = max(0.0, variance) ** 0.5
        self.log("train/loss", means.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{tag}": value for tag, value in means.items()})

    def _log_metrics(self, prefix: str, metrics: RolloutMetrics) -> None:
        """Log computed metrics; computing is already a sum over ranks."""
        values = metrics.compute()
        metrics.reset()
        for tag, value in values.items():
            self.log(f"{prefix}/{tag}", value, prog_bar=tag == "reward")


def _split(groups: Sequence[Group], size: int | None) -> list[Sequence[Group]]:
    size = size or len(groups)
    return [groups[start : start + size] for start in range(0, len(groups), size)]
