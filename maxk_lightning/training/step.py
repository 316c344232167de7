"""The loss of one optimizer step: whole groups in, one loss per micro-batch out. Knows no Lightning.

Legend: P prompts, N completions per prompt, B completions, T completion tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maxk_lightning.losses import EngineCorrection, PolicyLoss, StepCounts, kl_k3
from maxk_lightning.objectives import (
    ZERO_CREDIT,
    GroupFacts,
    Objective,
    credits_of,
    group_diagnostics,
    largest_subset,
    tempering,
)
from maxk_lightning.policy import Policy, TokenStats
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Samples, facts_of, rewards_of
from maxk_lightning.training.batch import NO_COMPLETION, Batch, Batches, to_batch
from maxk_lightning.training.micro_batches import MicroBatches, cut_by_prompts, cut_by_tokens
from maxk_lightning.training.old_policy import OldPolicy
from maxk_lightning.training.reference import Reference

CUT = 1e-5
"A weight that differs from the ratio of its token, and of its completion, by more than this share was cut."
MAX_LOG_RATIO_STD = 0.5
"Spread of log rho in a group up to which products of sequence ratios are healthy; see `group_diagnostics`."
Sums = dict[str, Tensor]
"""Sums for the log, by unit and tag: `token/kl` is summed over tokens, `group/...` over groups; `max/...` are maxima.
`count/token` says over how many tokens. `any_group/...` counts idle groups too, which the others leave out."""


@dataclass(frozen=True)
class StepLoss:
    """Objective and losses at one optimizer step.

    `cut` makes the micro-batches of this rank; calling the step loss on one of them gives its share of the loss. The
    shares of all micro-batches of all ranks add up to the loss of the step, however it is cut.
    """

    policy: Policy
    "The policy being trained."
    objective: Objective
    "Rewards -> credits; of a `Staged` one the stage in force."
    policy_loss: PolicyLoss
    "Credits -> loss per token."
    token_weights: Callable[[Tensor, StepCounts], Tensor]
    "mask_BT and counts -> weights_BT of the token losses; see `losses.normalisation`."
    counts: StepCounts
    "Denominators, over all micro-batches and ranks."
    temperature: float = 1.0
    "Temperature of the policy, as in sampling."
    kl_coef: float = 0.0
    "beta of the KL penalty (eq. 4)."
    entropy_coef: float = 0.0
    "Weight of the entropy bonus: the mean entropy per token, averaged as the losses are."
    reference: Reference | None = None
    "Target of the KL penalty; None: the old policy."
    has_reference_answered: bool = False
    "Whether the reference's log-probs of all completions of the step are known, on every rank."
    old: OldPolicy | None = None
    "pi_old; None: its log-probs are the engine's."
    is_old_known: bool = False
    "Whether its log-probs are known on every rank. If not, this is the first step: the policy is pi_old, and is noted."
    max_row_tokens: int | None = None
    "Longest row in which completions share their prompt; see `packing.pack`."
    max_prompts: int | None = None
    "Groups per micro-batch; None: all of them."
    max_tokens: int | None = None
    "Instead: tokens of packed rows per micro-batch."

    def cut(self, samples: Samples, ranks: Ranks) -> tuple[Batches, Sums]:
        """Return the micro-batches of this rank, and sums over its split and idle groups for the log.

        All ranks communicate in every pass of a sharded policy, so all get equally many micro-batches, some of them
        empty, and at least one: without any gradient an optimizer would not do what it does for a gradient of 0. Groups
        that are split come with their credits, which depend on the whole group.
        """
        cut = self._cut(samples.groups)
        num_ratio_passes, num_passes = (int(number) for number in ranks.largest([len(cut.parts), max(1, len(cut))]))
        credits_of_parts, sums = self._credits_of_parts(cut, num_ratio_passes, ranks)
        add(sums, self._sums_of_idle(samples))
        pack = [partial(self._to_batch, whole) for whole in cut.whole]
        pack += [
            partial(self._to_batch, [p], credits_B) for p, credits_B in zip(cut.parts, credits_of_parts, strict=True)
        ]
        return self._padded(pack, num_passes), sums

    def __call__(self, batch: Batch) -> tuple[Tensor, Sums]:
        """Compute the loss of one micro-batch, and sums over its tokens and groups for the log."""
        stats = self.policy(batch.rows, self.temperature, self.entropy_coef > 0)
        credits_B = batch.credits_B
        sums: Sums = {}
        old_BT = self._old_logprobs(stats, batch)
        if credits_B is None:
            log_ratios_PN = _log_ratios(stats, old_BT).view_as(batch.rewards_PN)
            credits_PN, sums = self._credits(batch.rewards_PN, log_ratios_PN, batch.facts)
            credits_B = credits_PN.flatten()
        terms = self.policy_loss(stats.logprobs_BT, old_BT, credits_B, batch.mask_BT)
        weights_BT = self.token_weights(batch.mask_BT, self.counts)
        target_BT = old_BT
        if self.reference is not None:
            target_BT = self.reference.logprobs(batch, self.temperature, is_known=self.has_reference_answered)
        kl_BT = kl_k3(stats.logprobs_BT, target_BT) * batch.mask_BT
        loss_BT = terms.loss_BT
        if self.old is not None:
            corrections_BT, engine_sums = _corrections(self.old.correction, old_BT, batch)
            loss_BT = loss_BT * corrections_BT
            sums |= engine_sums
        loss = (loss_BT * weights_BT).sum()
        if self.kl_coef > 0:
            loss = loss + self.kl_coef * (kl_BT * weights_BT).sum() / self.counts.num_completions
        if self.entropy_coef > 0:
            loss = loss - self.entropy_coef * (stats.entropies_BT * weights_BT).sum() / self.counts.num_completions
        sums["count/token"] = batch.mask_BT.sum()
        sums["count/completion"] = torch.tensor(sum(c is not NO_COMPLETION for c in batch.completions))
        sums["token/kl"] = kl_BT.detach().sum()
        sums["token/entropy"] = stats.entropies_BT.detach().sum()
        sums["token/clip_fraction"] = terms.is_clipped_BT.sum()
        return loss, {**sums, "loss": loss.detach()}

    def note_old(self, batch: Batch) -> None:
        """Note the policy's log-probs of a batch as the old ones."""
        self._old_logprobs(self.policy(batch.rows, self.temperature), batch)

    def means(self, sums: Sums, ranks: Ranks) -> dict[str, float]:
        """Compute values for the log by tag, over all ranks, from the sums over the micro-batches of each."""
        maxima = sorted(name for name in sums if name.startswith("max/"))  # the same order on all ranks
        names = sorted(sums.keys() - maxima)
        values = dict(zip(maxima, ranks.largest([float(sums[name]) for name in maxima]), strict=True))
        totals = dict(zip(names, ranks.total([float(sums[name]) for name in names]), strict=True))
        counted = {name: totals.pop(name) for name in names if name.startswith("count/")}
        for name, total in totals.items():
            unit = name.rpartition("/")[0]
            fixed = {"": 1.0, "any_group": self.counts.num_prompts}
            values[name] = total / max(1.0, fixed[unit] if unit in fixed else counted[f"count/{unit}"])
        return {name.rpartition("/")[2]: value for name, value in values.items()}

    def _old_logprobs(self, stats: TokenStats, batch: Batch) -> Tensor:
        """log pi_old of a batch, noted if this is the first step on the rollout."""
        if self.old is None:
            return batch.behaviour_logprobs_BT
        if self.is_old_known:
            return self.old.logprobs(batch)
        self.old.note(batch, stats.logprobs_BT)
        return stats.logprobs_BT.detach()

    def _cut(self, groups: Sequence[Group]) -> MicroBatches:
        if self.max_tokens is None:
            return cut_by_prompts(groups, self.max_prompts)
        return cut_by_tokens(groups, self.max_tokens, self.max_row_tokens)

    def _credits(self, rewards_PN: Tensor, log_ratios_PN: Tensor, facts: GroupFacts) -> tuple[Tensor, Sums]:
        """Credits of whole groups, and sums over groups for the log."""
        credits_PN = rewards_PN
        if len(rewards_PN) > 0:
            credits_PN = credits_of(self.objective, rewards_PN, log_ratios_PN, facts)
        diagnostics = group_diagnostics(rewards_PN, log_ratios_PN, largest_subset(self.objective))
        sums: Sums = {}
        if (alpha_P := tempering(self.objective, rewards_PN, log_ratios_PN)) is not None:
            sums["group/tempering"] = alpha_P.nansum()
        return credits_PN, sums | {
            "count/group": torch.tensor(len(rewards_PN)),
            "group/log_ratio_std": diagnostics.log_ratio_std_P.nansum(),
            "group/log_normaliser": diagnostics.log_normaliser_P.nansum(),
            "group/effective_subsets_fraction": diagnostics.effective_fraction_P.nansum(),
            "group/out_of_range_fraction": (diagnostics.log_ratio_std_P > MAX_LOG_RATIO_STD).sum(),
            "any_group/zero_credit_fraction": (credits_PN.abs() < ZERO_CREDIT).all(1).sum(),
            "max/credit_max": credits_PN.abs().max() if credits_PN.numel() else credits_PN.sum(),
            "any_group/too_small_fraction": diagnostics.is_too_small_P.sum(),
        }

    def _sums_of_idle(self, samples: Samples) -> Sums:
        num_present_P = rewards_of(samples.idle).isnan().logical_not().sum(1)
        return {
            "any_group/zero_credit_fraction": torch.tensor(len(samples.idle)),
            "any_group/too_small_fraction": (num_present_P < largest_subset(self.objective)).sum(),
        }

    def _credits_of_parts(self, cut: MicroBatches, num_passes: int, ranks: Ranks) -> tuple[list[Tensor], Sums]:
        """Credits of the parts of split groups, and sums over these groups for the log.

        Credits need the ratios of the whole group, which come from passes without gradients. They carry no gradient
        anyway, so the gradients of the parts add up to the group's. At the first step on a rollout all ratios are 1,
        without a pass.
        """
        log_ratios: list[Tensor] = []
        for batch in self._padded([partial(self._to_batch, [part]) for part in cut.parts], num_passes):
            on_device = batch.to(ranks.device)
            if self.old is not None and not self.is_old_known:
                log_ratios.append(torch.zeros(len(batch.completions), dtype=torch.float64, device=ranks.device))
                continue
            with torch.no_grad():
                stats = self.policy(on_device.rows, self.temperature)
            log_ratios.append(_log_ratios(stats, self._old_logprobs(stats, on_device)))
        credits_of_parts: list[Tensor] = []
        sums: Sums = {}
        start = 0
        for group, num_parts in zip(cut.split, cut.num_parts, strict=True):
            rewards_1N = torch.tensor([group.rewards], dtype=torch.float64, device=ranks.device)
            parts = log_ratios[start : start + num_parts]
            facts = facts_of([group]).moved(lambda fact: fact.to(ranks.device))
            credits_1N, group_sums = self._credits(rewards_1N, torch.cat(parts)[None], facts)
            credits_of_parts += torch.split(credits_1N[0], [len(part) for part in parts])
            add(sums, group_sums)
            start += num_parts
        return credits_of_parts, sums

    def _to_batch(self, groups: Sequence[Group], credits_B: Tensor | None = None) -> Batch:
        return to_batch(groups, self.max_row_tokens, math.ceil(self.counts.num_completions), credits_B)

    def _padded(self, pack: list[partial[Batch]], number: int) -> Batches:
        return Batches(pack + [partial(self._to_batch, [])] * (number - len(pack)))


def count(samples: Samples, ranks: Ranks) -> StepCounts:
    """Count the denominators of an optimizer step of which each rank has a share; all ranks must call this together."""
    groups = [*samples.groups, *samples.idle]
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    num_prompts, num_completions, total_tokens = ranks.total([len(groups), len(lengths), sum(lengths)])
    return StepCounts(
        num_prompts=int(num_prompts),
        num_completions=num_completions / num_prompts if num_prompts else samples.sampling.num_completions,
        total_tokens=int(total_tokens),
        max_tokens=samples.sampling.max_new_tokens,
    )


def add(totals: Sums, sums: Sums) -> None:
    """Add sums to totals, and raise maxima, in place."""
    for name, value in sums.items():
        if name in totals:
            value = torch.maximum(totals[name], value) if name.startswith("max/") else totals[name] + value
        totals[name] = value


def _corrections(correction: EngineCorrection | None, old_BT: Tensor, batch: Batch) -> tuple[Tensor, Sums]:
    """Weights of the token losses for the differences between engine and pi_old, and sums for the log."""
    gaps_BT = (old_BT - batch.behaviour_logprobs_BT) * batch.mask_BT
    ratios_BT = gaps_BT.exp()
    weights_BT, is_cut_BT = torch.ones_like(ratios_BT), torch.zeros_like(batch.mask_BT)
    if correction is not None:
        weights_BT = correction(old_BT, batch.behaviour_logprobs_BT, batch.mask_BT)
        is_cut_BT = _differ(weights_BT, ratios_BT) & _differ(weights_BT, gaps_BT.sum(1, keepdim=True).exp())
    return weights_BT, {
        "token/engine_gap": gaps_BT.abs().sum(),
        "completion/engine_log_ratio": gaps_BT.sum(1).abs().sum(),
        "token/engine_cut_fraction": (is_cut_BT & batch.mask_BT).sum(),
    }


def _differ(weights_BT: Tensor, ratios_BT: Tensor) -> Tensor:
    return (weights_BT - ratios_BT).abs() > CUT * ratios_BT


def _log_ratios(stats: TokenStats, old_BT: Tensor) -> Tensor:
    """log pi - log pi_old of whole completions [B], float64, without gradient."""
    return (stats.logprobs_BT - old_BT).detach().double().sum(1)
