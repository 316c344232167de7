"""Policy losses: from credits to a loss per token.

Shapes: P prompts, N completions per prompt, B = P*N rows, T completion tokens. `mask_BT` is True on the tokens of a
completion; a row without any (an empty or a lost completion) has loss 0 and gradient 0. Everything is computed in
float32 whatever the model's dtype (float64 stays float64), and log-ratios are clamped to +-LOG_RATIO_LIMIT before exp.

Losses here are unweighted; the training loss is (loss_BT * weights_BT).sum() with the weights of
`losses.normalisation`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from maxk_lightning.objectives import LOG_RATIO_LIMIT, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The terms of a policy loss, token by token."""

    loss_BT: Tensor
    "Losses of the tokens, unweighted, float32 or wider; 0 where masked."
    is_clipped_BT: Tensor
    "Whether a clip cut off the gradient (CISPO: bounded the ratio, M2PO: left out) of a token; False where masked."


if TYPE_CHECKING:  # see `objectives.objective`: jsonargparse would take the loss for a factory of LossTerms
    AnyTensor = Tensor
    AnyTerms = LossTerms
else:
    AnyTensor = Any
    AnyTerms = Any


class PolicyLoss(Protocol):
    """Turns credits into a loss to minimise. Users plug in their own class by class path."""

    @property
    def accepts_ratio_credits(self) -> bool:
        """Whether the loss multiplies grad log pi by the credit alone, as credits that contain the ratio need."""
        ...

    def __call__(
        self, logprobs_BT: AnyTensor, behaviour_logprobs_BT: AnyTensor, credits_B: AnyTensor, mask_BT: AnyTensor, /
    ) -> AnyTerms:
        """Compute the loss of every token; only `logprobs_BT` carries gradient."""
        ...


def check_loss_fits(policy_loss: PolicyLoss, objective: Objective) -> None:
    """Refuse a loss that would multiply credits by the ratio a second time; ValueError naming both config keys."""
    if objective.includes_ratio and not policy_loss.accepts_ratio_credits:
        raise ValueError(
            f"`policy_loss` {type(policy_loss).__name__} multiplies credits by the policy ratio, but those of "
            f"`objective` {type(objective).__name__} contain it already: use ScoreFunction"
        )


def loss_for(policy_loss: PolicyLoss | None, objective: Objective) -> PolicyLoss:
    """Return the loss to train with; None: `CISPO` for advantages, `ScoreFunction` for credits that contain the ratio.

    Raises:
        ValueError: the objective has no `includes_ratio`, or the loss does not fit it.
    """
    if not isinstance(getattr(objective, "includes_ratio", None), bool):
        raise ValueError(
            f"model.objective: {type(objective).__name__} needs an attribute includes_ratio: True if its credits "
            "contain the ratio and multiply grad log pi directly, False if they are advantages"
        )
    policy_loss = policy_loss or (ScoreFunction() if objective.includes_ratio else CISPO())
    check_loss_fits(policy_loss, objective)
    return policy_loss


@dataclass(frozen=True)
class ScoreFunction(PolicyLoss):
    """-credit log pi: REINFORCE for on-policy credits, and the loss for credits that contain the ratio."""

    accepts_ratio_credits: ClassVar[bool] = True

    def __call__(
        self, logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, credits_B: Tensor, mask_BT: Tensor
    ) -> LossTerms:
        """Compute the losses; see `PolicyLoss`. Nothing clips."""
        logprobs_BT = masked(logprobs_BT, mask_BT)
        loss_BT = -credits_B.to(logprobs_BT.dtype).unsqueeze(-1) * logprobs_BT
        return LossTerms(loss_BT=loss_BT, is_clipped_BT=torch.zeros_like(mask_BT, dtype=torch.bool))


@dataclass(frozen=True)
class ClippedSurrogate(PolicyLoss):
    """PPO's surrogate with one ratio per token (arXiv:2510.23393, eq. 4; arXiv:1707.06347).

    -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A). A larger `clip_high` is DAPO's clip-higher
    (arXiv:2503.14476); `dual_clip` c bounds the loss of negative credits at -c A (arXiv:1912.09729). At a clip's
    boundary the token is not clipped: its gradient flows.
    """

    accepts_ratio_credits: ClassVar[bool] = False
    clip_low: float = 0.2
    "Lower clip, in (0, 1]: ratios of tokens to be made less likely are followed down to 1 - clip_low."
    clip_high: float | None = None
    "Upper clip: ratios of tokens to be made more likely are followed up to 1 + clip_high; None: the same as clip_low."
    dual_clip: float | None = None
    "Bound above 1 + clip_high on ratios of tokens to be made less likely; None: no bound."

    def __post_init__(self) -> None:
        check_clips(self.clip_low, self.clip_high, self.dual_clip)

    def __call__(
        self, logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, credits_B: Tensor, mask_BT: Tensor
    ) -> LossTerms:
        """Compute the losses; see `PolicyLoss`."""
        ratios_BT = log_ratios(logprobs_BT, behaviour_logprobs_BT, mask_BT).exp()
        clip_high = self.clip_low if self.clip_high is None else self.clip_high
        return clipped_surrogate(ratios_BT, credits_B, mask_BT, self.clip_low, clip_high, self.dual_clip)


@dataclass(frozen=True)
class SequenceClippedSurrogate(PolicyLoss):
    """GSPO (arXiv:2507.18071): the same surrogate with the length-normalised ratio of the whole completion.

    ratio_i = exp(mean_t log ratio_it), for every token of completion i; defaults are the paper's. Meant for the
    `sequence` normalisation, which makes the sum over tokens one term per completion.
    """

    accepts_ratio_credits: ClassVar[bool] = False
    clip_low: float = 3e-4
    "Lower clip of the mean over tokens; see `ClippedSurrogate`."
    clip_high: float | None = 4e-4
    "Upper clip of the mean over tokens; None: the same as clip_low."
    dual_clip: float | None = None
    "Bound of the loss of negative credits; see `ClippedSurrogate`."

    def __post_init__(self) -> None:
        check_clips(self.clip_low, self.clip_high, self.dual_clip)

    def __call__(
        self, logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, credits_B: Tensor, mask_BT: Tensor
    ) -> LossTerms:
        """Compute the losses; see `PolicyLoss`."""
        log_ratios_BT = log_ratios(logprobs_BT, behaviour_logprobs_BT, mask_BT)
        mean_B1 = log_ratios_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        ratios_BT = mean_B1.exp().expand_as(log_ratios_BT)
        clip_high = self.clip_low if self.clip_high is None else self.clip_high
        return clipped_surrogate(ratios_BT, credits_B, mask_BT, self.clip_low, clip_high, self.dual_clip)


CISPORatio = Literal["token", "prefix"]


@dataclass(frozen=True)
class CISPO(PolicyLoss):
    """-clamp(ratio) credit log pi with the ratio held constant (MiniMax-M1, arXiv:2506.13585).

    No token loses its gradient. The paper sets no lower bound and does not publish its upper one; 5 is ScaleRL's
    (arXiv:2510.13786). Ratios of prefixes are not the paper's.
    """

    accepts_ratio_credits: ClassVar[bool] = False
    ratio_low: float = 0.0
    "Lower bound of ratios; 0: none."
    ratio_high: float = 5.0
    "Upper bound of ratios."
    ratio: CISPORatio = "token"
    """`token`: a token's own ratio. `prefix`: exp of the sum of log-ratios up to and including the token, clamped to
    +-LOG_RATIO_LIMIT. Without bounds it weights prefixes as if the policy had written them, and leaves what follows the
    token as it was sampled."""

    def __post_init__(self) -> None:
        if self.ratio not in get_args(CISPORatio):
            raise ValueError(f"`ratio` is {self.ratio!r}, must be one of {', '.join(get_args(CISPORatio))}")
        if not 0.0 <= self.ratio_low < 1.0 < self.ratio_high:
            raise ValueError(
                f"`ratio_low` is {self.ratio_low} and `ratio_high` {self.ratio_high}, must satisfy 0 <= low < 1 < high"
            )

    def __call__(
        self, logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, credits_B: Tensor, mask_BT: Tensor
    ) -> LossTerms:
        """Compute the losses; see `PolicyLoss`."""
        log_ratios_BT = log_ratios(logprobs_BT, behaviour_logprobs_BT, mask_BT).detach()
        if self.ratio == "prefix":
            log_ratios_BT = log_ratios_BT.cumsum(-1).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        ratios_BT = log_ratios_BT.exp()
        bounded_BT = ratios_BT.clamp(self.ratio_low, self.ratio_high)
        credits_B1 = credits_B.to(ratios_BT.dtype).unsqueeze(-1)
        loss_BT = -bounded_BT * credits_B1 * masked(logprobs_BT, mask_BT)
        return LossTerms(loss_BT=loss_BT, is_clipped_BT=(bounded_BT != ratios_BT) & mask_BT.bool())


@dataclass(frozen=True)
class M2PO(PolicyLoss):
    """-ratio A without a clip, and without the tokens that lead away too far (arXiv:2510.01161).

    A token leads away if A > 0 and ratio > 1, or A < 0 and ratio < 1. Those with the largest (log ratio)^2 are left
    out, loss and gradient 0, until the mean of (log ratio)^2 over the rest of those that lead away is at most
    `second_moment`; equal ones are left out together. Tokens that do not lead away are neither counted nor left out, so
    ratios above 1 of negative A have no bound.

    Unlike in the paper, the mean is over the tokens of *one completion*, not of the batch: else the loss of a
    completion would depend on its micro-batch or rank. Where the mean over the batch is small the paper leaves out
    nothing; here outliers of single completions are left out: a token that alone leads away, as soon as its
    (log ratio)^2 is above `second_moment`. (The authors' program differs from the paper too: it counts tokens above the
    cap as if they were at the cap, and cuts no ratio from .7 to 1.5.)
    """

    accepts_ratio_credits: ClassVar[bool] = False
    second_moment: float = 0.04
    "Largest mean of (log ratio)^2 over the tokens of a completion that lead away, in nats^2."

    def __post_init__(self) -> None:
        if not self.second_moment > 0.0:
            raise ValueError(f"`second_moment` is {self.second_moment}, must be positive")

    def __call__(
        self, logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, credits_B: Tensor, mask_BT: Tensor
    ) -> LossTerms:
        """Compute the losses; see `PolicyLoss`."""
        log_ratios_BT = log_ratios(logprobs_BT, behaviour_logprobs_BT, mask_BT)
        credits_B1 = credits_B.to(log_ratios_BT.dtype).unsqueeze(-1)
        leads_away_BT = credits_B1.sign() * log_ratios_BT.detach() > 0
        is_left_out_BT = outliers(log_ratios_BT.detach().square(), leads_away_BT, self.second_moment)
        loss_BT = -log_ratios_BT.exp() * credits_B1
        return LossTerms(loss_BT=masked(loss_BT, mask_BT.bool() & ~is_left_out_BT), is_clipped_BT=is_left_out_BT)


def outliers(values_BT: Tensor, among_BT: Tensor, largest_mean: float) -> Tensor:
    """Mark the largest of some values, equal ones together, so that the mean of the rest is at most `largest_mean`.

    >>> values_BT = torch.tensor([[1.0, 5.0, 2.0, 9.0, 5.0]])
    >>> outliers(values_BT, torch.tensor([[True, True, True, False, True]]), 2.7)
    tensor([[False,  True, False, False,  True]])
    """
    sorted_BT = torch.where(among_BT, values_BT, torch.inf).sort(-1).values
    counts_T = torch.arange(1, values_BT.shape[-1] + 1, device=values_BT.device)
    num_kept_B1 = (sorted_BT.cumsum(-1) / counts_T <= largest_mean).sum(-1, keepdim=True)  # these means rise
    smallest_B1 = torch.nn.functional.pad(sorted_BT, (0, 1), value=torch.inf).gather(-1, num_kept_B1)
    return among_BT & (values_BT >= smallest_B1)


def clipped_surrogate(
    ratios_BT: Tensor, credits_B: Tensor, mask_BT: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> LossTerms:
    """-min(ratio A, clip(ratio) A), and at least -dual_clip A for negative A; a ratio on a boundary is not clipped."""
    credits_B1 = credits_B.to(ratios_BT.dtype).unsqueeze(-1)
    is_too_high_BT = (credits_B1 > 0) & (ratios_BT > 1 + clip_high)
    is_too_low_BT = (credits_B1 < 0) & (ratios_BT < 1 - clip_low)
    followed_BT = torch.where(is_too_high_BT, 1 + clip_high, torch.where(is_too_low_BT, 1 - clip_low, ratios_BT))
    is_clipped_BT = is_too_high_BT | is_too_low_BT
    if dual_clip is not None:
        is_far_BT = (credits_B1 < 0) & (ratios_BT > dual_clip)
        followed_BT = torch.where(is_far_BT, dual_clip, followed_BT)
        is_clipped_BT = is_clipped_BT | is_far_BT
    return LossTerms(loss_BT=masked(-followed_BT * credits_B1, mask_BT), is_clipped_BT=is_clipped_BT & mask_BT.bool())


def log_ratios(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Compute log pi - log other per token within +-LOG_RATIO_LIMIT; 0 where masked, also for NaN and inf."""
    difference_BT = masked(logprobs_BT, mask_BT) - masked(other_logprobs_BT, mask_BT)
    return difference_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Values in float32 or wider, 0 where masked (also for NaN and inf, in value and in gradient)."""
    return torch.where(mask_BT.bool(), at_least_float32(values_BT), 0.0)


def at_least_float32(values: Tensor) -> Tensor:
    """Turn half precisions into float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_clips(clip_low: float, clip_high: float | None, dual_clip: float | None) -> None:
    """Refuse clips outside their ranges with ValueError."""
    if not 0.0 < clip_low <= 1.0:
        raise ValueError(f"`clip_low` is {clip_low}, must be in (0, 1]")
    if clip_high is not None and not clip_high > 0.0:
        raise ValueError(f"`clip_high` is {clip_high}, must be positive, or null for the same as `clip_low`")
    upper = 1 + (clip_low if clip_high is None else clip_high)
    if dual_clip is not None and not dual_clip > upper:
        raise ValueError(f"`dual_clip` is {dual_clip}, must be above 1 + clip_high = {upper}, or null")
