"""How far the off-policy correction of a group can be trusted. Shapes: P prompts, N completions per prompt."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maxk_lightning.objectives.exact import sorted_log_ratios
from maxk_lightning.objectives.group import sort_groups
from maxk_lightning.objectives.subset_law import log_effective_fraction, log_normaliser


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDiagnostics:
    """Diagnostics per group; NaN where it has fewer than k samples, so average with nanmean.

    They concern credits that contain sequence ratios (`ExactMaxAtK`, `OffPolicyMaxAtK`) and, tempered, `SetAdvantage`;
    on-policy credits in a loss with a ratio per token do not depend on them. Healthy: a standard deviation of log rho
    below 0.5 and |log E| below 1 (`docs/sequence_study.md`); |log E| above 2 means that a few samples decide, whatever
    the effective fraction says (it is 1 at k = n, where there is one subset). Completions of a language model sum
    log-ratios over hundreds of tokens and leave that range within one optimizer step.
    """

    log_normaliser_P: Tensor
    "log E, where E is the mean over k-subsets of prod rho; 0 on-policy. The expectation of E is 1."
    effective_fraction_P: Tensor
    "Effective number of k-subsets, (sum W)^2 / sum W^2 with W = prod rho, over C(n, k): in (0, 1], 1 on-policy."
    log_ratio_std_P: Tensor
    "Standard deviation (over n) of log rho in the group."
    is_too_small_P: Tensor
    "Whether the group lost samples until fewer than k were left: its credits are 0."


def group_diagnostics(rewards_PN: Tensor, log_ratios_PN: Tensor, k: int) -> GroupDiagnostics:
    """Diagnose every group; rewards only say which samples are missing."""
    groups = sort_groups(rewards_PN)
    log_ratios_PN = sorted_log_ratios(groups, rewards_PN, log_ratios_PN)
    log_normaliser_P = log_normaliser(log_ratios_PN, groups.num_samples_P, k)
    log_fraction_P = log_effective_fraction(log_ratios_PN, groups.num_samples_P, k)
    n_P1 = groups.num_samples_P.unsqueeze(-1)
    finite_PN = log_ratios_PN.masked_fill(groups.is_present_PN.logical_not(), 0.0)
    mean_P1 = finite_PN.sum(-1, keepdim=True) / n_P1.clamp(min=1)
    variance_P = ((finite_PN - mean_P1).square() * groups.is_present_PN).sum(-1) / groups.num_samples_P.clamp(min=1)
    is_too_small_P = groups.num_samples_P < k
    return GroupDiagnostics(
        log_normaliser_P=log_normaliser_P.masked_fill(is_too_small_P, torch.nan),
        effective_fraction_P=log_fraction_P.exp().masked_fill(is_too_small_P, torch.nan),
        log_ratio_std_P=variance_P.sqrt().masked_fill(is_too_small_P, torch.nan),
        is_too_small_P=is_too_small_P,
    )
