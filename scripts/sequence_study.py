"""Which objective times which loss follows the true max@k gradient on *sequences*, as the policy drifts?

Toys of 60 tokens (`sequence_toys.py`) whose max@k gradient is exact. A batch of 512 completions is sampled from the old
policy, cut into groups of n, and every pair of objective and loss of the package estimates the gradient at a *new*
policy, as PPO iterations after the first do. Drift is a direction times the step at which log rho, summed over the
tokens of a completion, has the wanted standard deviation:

    signal   along the true gradient             noise    at random, over the whole table
    mixture  half and half                       adam     the sign of the batch's own gradient estimate, as Adam's first
                                                          step on the same samples: the drift of a real PPO iteration

Per pair: the cosine with the true gradient, mean over toys and batches; its gain over on-policy credits x CISPO on the
same samples, with the standard error over toys; |E estimate - true|^2 / |true|^2 (squared bias,
the sampling variance of its few batches taken out, so that it can come out below 0) and E|estimate - E estimate|^2 /
|true|^2 (variance), mean over toys; the largest |estimate| over |true gradient of the old policy|, which says what a
step on it would do to a policy whose steps were right before. `GRPO` ascends another objective.

    python scripts/sequence_study.py --out docs [--quick]

writes sequence_study.json and sequence_study.png there, and prints the tables. One core, about three minutes; --quick
takes fewer toys, spreads and pairs of n and k.

Shapes: Y toys, R = Y * batches replicates, S sequences of a batch, T tokens, C contexts, V symbols, P = R * S / n
groups, N = n.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from sequence_tables import draw, markdown
from sequence_toys import (
    Family,
    Toys,
    at_cells,
    dense_rewards,
    make_toys,
    sample,
    sparse_rewards,
    true_gradient,
    weighted_scores,
)
from torch import Tensor

from maxk_lightning.losses import (
    CISPO,
    M2PO,
    ClippedSurrogate,
    PolicyLoss,
    ScoreFunction,
    SequenceClippedSurrogate,
    TruncatedWeights,
)
from maxk_lightning.objectives import GRPO, ExactMaxAtK, MaxAtK, Objective, OffPolicyMaxAtK, SetAdvantage

NUM_TOKENS = 60
SETTINGS = ((8, 4), (32, 4), (32, 8))  # (n, k)
SPREADS = (0.0, 0.5, 1.0, 1.5, 2.0)  # standard deviation of log rho
DRIFTS = ("signal", "noise", "mixture", "adam")
REWARDS: dict[str, Callable[[Toys], Tensor]] = {"dense": dense_rewards, "sparse": sparse_rewards}
NUM_CALIBRATION = 256
"Sequences that measure the spread while the step is searched; others than the batch's."
UNBOUNDED = 1e9
"Cut of a CISPO that never cuts."

Row = dict[str, Any]
TokenWeights = Callable[[Tensor, Tensor, Tensor], Tensor]
"new and old log-probs and credits -> what multiplies grad log pi of each token."


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is computed."""

    num_toys: int = 6
    "Y."
    batches_per_toy: int = 6
    "Batches that every toy samples."
    num_sequences: int = 512
    "S, whatever n is: the same budget of samples."
    settings: tuple[tuple[int, int], ...] = SETTINGS
    "(n, k)."
    spreads: tuple[float, ...] = SPREADS
    "Wanted standard deviations of log rho, the first is 0."


QUICK = Size(num_toys=2, batches_per_toy=4, num_sequences=128, settings=SETTINGS[:1], spreads=(0.0, 1.0))


def objectives(k: int) -> dict[str, Objective]:
    """What is compared, by name."""
    return {
        "exact, centred": ExactMaxAtK(k, ratio_clip=None),
        "exact, clip 2": ExactMaxAtK(k, ratio_clip=2.0),
        "exact, clip 1.5": ExactMaxAtK(k, ratio_clip=1.5),
        "exact, self-normalised": ExactMaxAtK(k, self_normalise=True, ratio_clip=None),
        "exact, self-normalised, clip 2": ExactMaxAtK(k, self_normalise=True, ratio_clip=2.0),
        "first order, LOO-1": OffPolicyMaxAtK(k, "loo1", clamp=None),
        "first order, LOO-1, clamp 1": OffPolicyMaxAtK(k, "loo1", clamp=1.0),
        "first order, LOO-1, clamp .5": OffPolicyMaxAtK(k, "loo1", clamp=0.5),
        "first order, LOO-1, clamp .2": OffPolicyMaxAtK(k, "loo1", clamp=0.2),
        "on-policy": MaxAtK(k),
        "on-policy, LOO-1": MaxAtK(k, "loo1"),
        "on-policy, z-score": MaxAtK(k, "zscore"),
        "GRPO": GRPO(),
        "set, untempered": SetAdvantage(k, 0.0),
        "set .7": SetAdvantage(k, 0.7),
        "set .9": SetAdvantage(k, 0.9),
    }


REFERENCE = ("on-policy", "CISPO 5")
"What the gain in cosine is measured against."

LOSSES: dict[str, PolicyLoss] = {
    "score function": ScoreFunction(),
    "CISPO 1.5": CISPO(ratio_high=1.5),
    "CISPO 2": CISPO(ratio_high=2.0),
    "CISPO 5": CISPO(ratio_high=5.0),
    "CISPO, no cut": CISPO(ratio_high=UNBOUNDED),
    "CISPO of prefixes, 5": CISPO(ratio_high=5.0, ratio="prefix"),
    "clip .2": ClippedSurrogate(),
    "clip-higher": ClippedSurrogate(clip_low=0.2, clip_high=0.28),
    "sequence clip": SequenceClippedSurrogate(),
    "M2PO": M2PO(),
}
"Losses by name. CISPO at a cut is TIS, token ratios truncated there times a score function: the same weights."
TIS_SEQUENCE = "sequence TIS 2"
"One ratio per completion, truncated at 2, times a score function."


def pairs(k: int) -> Iterator[tuple[str, str]]:
    """Names of objective and loss that are tried together."""
    for name, objective in objectives(k).items():
        if objective.includes_ratio:
            yield name, "score function"
        elif name == "on-policy":
            yield from ((name, loss) for loss in [*LOSSES, TIS_SEQUENCE])
        elif name == "set .7":
            yield from ((name, loss) for loss in ("score function", "CISPO 2", "CISPO 5", "clip .2", "clip-higher"))
        else:
            yield name, "CISPO 5"


def token_weights(loss: str) -> TokenWeights:
    """What a loss of the package multiplies grad log pi of each token with: minus its gradient by autograd."""

    def of_policy_loss(logprobs_BT: Tensor, old_BT: Tensor, credits_B: Tensor) -> Tensor:
        leaf_BT = logprobs_BT.detach().requires_grad_()
        mask_BT = torch.ones_like(leaf_BT, dtype=torch.bool)
        loss_BT = LOSSES[loss](leaf_BT, old_BT, credits_B, mask_BT).loss_BT
        return -torch.autograd.grad(loss_BT.sum(), leaf_BT)[0]

    def of_sequence_tis(logprobs_BT: Tensor, old_BT: Tensor, credits_B: Tensor) -> Tensor:
        mask_BT = torch.ones_like(logprobs_BT, dtype=torch.bool)
        weights_BT: Tensor = TruncatedWeights(2.0, per_sequence=True)(logprobs_BT, old_BT, mask_BT)
        return weights_BT * credits_B.unsqueeze(-1)

    return of_sequence_tis if loss == TIS_SEQUENCE else of_policy_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """What is sampled from the old policies, once per family; all cells of the study share it."""

    toys: Toys
    "Y toys, each repeated for its batches: R of them."
    cells_RST: Tensor
    "The batches."
    counts_RSK: Tensor
    "How often each cell of the table occurs in the sequences that calibrate the step; K = C * V."
    noise_RCV: Tensor
    "Direction of random drift; the same for the batches of a toy."
    num_toys: int
    "Y."


def sample_batches(family: Family, size: Size, seed: int) -> Batches:
    """Toys and their batches."""
    generator = torch.Generator().manual_seed(seed)
    toys = make_toys(family, size.num_toys, NUM_TOKENS, generator)
    noise_YCV = torch.randn(toys.logits_RCV.shape, dtype=torch.float64, generator=generator)
    calibration_YST = sample(toys, NUM_CALIBRATION, generator)
    counts_YSK = torch.zeros(*calibration_YST.shape[:2], noise_YCV[0].numel(), dtype=torch.float64)
    counts_YSK.scatter_add_(-1, calibration_YST, torch.ones_like(calibration_YST, dtype=torch.float64))
    repeated = toys.repeat(size.batches_per_toy)
    return Batches(
        toys=repeated,
        cells_RST=sample(repeated, size.num_sequences, generator),
        counts_RSK=counts_YSK.repeat_interleave(size.batches_per_toy, 0),
        noise_RCV=noise_YCV.repeat_interleave(size.batches_per_toy, 0),
        num_toys=size.num_toys,
    )


def drift_direction(batches: Batches, drift: str, rewards_RM: Tensor, n: int, k: int) -> Tensor:
    """Direction in logits, such that a small step of 1 spreads log rho by 1."""
    toys = batches.toys
    if drift == "mixture":
        parts = [drift_direction(batches, part, rewards_RM, n, k) for part in ("signal", "noise")]
        return sum(parts, torch.zeros_like(parts[0])) / math.sqrt(2)
    if drift == "adam":
        rewards_PN = batch_rewards(batches, rewards_RM).view(-1, n)
        credits_RS = MaxAtK(k)(rewards_PN, torch.zeros_like(rewards_PN)).view(batches.cells_RST.shape[:2])
        weights_RST = credits_RS.unsqueeze(-1).expand(batches.cells_RST.shape)
        direction_RCV = weighted_scores(toys.logits_RCV, batches.cells_RST, weights_RST).sign()
    else:
        is_signal = drift == "signal"
        direction_RCV = true_gradient(toys, toys.logits_RCV, rewards_RM, k) if is_signal else batches.noise_RCV
    small_RCV = 1e-4 * direction_RCV / direction_RCV.flatten(1).norm(dim=-1).view(-1, 1, 1)
    return 1e4 * small_RCV * (1e-4 / spread_of(batches, small_RCV)).view(-1, 1, 1)


def spread_of(batches: Batches, change_RCV: Tensor) -> Tensor:
    """Standard deviation of log rho over the calibration sequences, when the logits change so: [R]."""
    old_RCV = batches.toys.logits_RCV
    log_ratios_RCV = (old_RCV + change_RCV).log_softmax(-1) - old_RCV.log_softmax(-1)
    return (batches.counts_RSK @ log_ratios_RCV.flatten(1).unsqueeze(-1)).squeeze(-1).std(-1, correction=0)


def drifted(batches: Batches, direction_RCV: Tensor, spread: float) -> Tensor:
    """New logits at which log rho spreads by this much, by bisection over the step."""
    old_RCV = batches.toys.logits_RCV
    low_R, high_R = torch.zeros(len(old_RCV), dtype=torch.float64), torch.full((len(old_RCV),), 20.0).double()
    for _ in range(40):
        step_R = (low_R + high_R) / 2
        is_near_R = spread_of(batches, step_R.view(-1, 1, 1) * direction_RCV) < spread
        low_R, high_R = torch.where(is_near_R, step_R, low_R), torch.where(is_near_R, high_R, step_R)
    return old_RCV + low_R.view(-1, 1, 1) * direction_RCV


def batch_rewards(batches: Batches, rewards_RM: Tensor) -> Tensor:
    """Reward of every sequence of the batches: [R, S]."""
    points_RS = at_cells(batches.toys.hits_RCV, batches.cells_RST).sum(-1).long()
    return rewards_RM.gather(1, points_RS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One pair in one cell of the study; see the top of this file."""

    cosine: float
    gain: float
    gain_error: float
    squared_bias: float
    variance: float
    largest: float


def measure(
    estimate_RK: Tensor, reference_RK: Tensor, truth_RK: Tensor, old_truth_RK: Tensor, num_toys: int
) -> Measure:
    """Compare estimates with the truth of their replicate, and with another estimate from the same samples."""
    cosines_Y = torch.cosine_similarity(estimate_RK, truth_RK, dim=-1).view(num_toys, -1).mean(1)
    gains_Y = cosines_Y - torch.cosine_similarity(reference_RK, truth_RK, dim=-1).view(num_toys, -1).mean(1)
    scale_Y1 = truth_RK.norm(dim=-1).view(num_toys, -1).mean(-1, keepdim=True)
    errors_YBK = (estimate_RK - truth_RK).view(num_toys, -1, truth_RK.shape[1]) / scale_Y1.unsqueeze(-1)
    mean_YK, num_batches = errors_YBK.mean(1), errors_YBK.shape[1]
    variance_Y = (errors_YBK - mean_YK.unsqueeze(1)).square().sum(-1).sum(-1) / (num_batches - 1)
    squared_bias = (mean_YK.square().sum(-1) - variance_Y / num_batches).mean()  # the mean of few batches has variance
    return Measure(
        cosine=cosines_Y.mean().item(),
        gain=gains_Y.mean().item(),
        gain_error=(gains_Y.std() / math.sqrt(num_toys)).item(),
        squared_bias=squared_bias.item(),
        variance=variance_Y.mean().item(),
        largest=(estimate_RK.norm(dim=-1) / old_truth_RK.norm(dim=-1)).max().item(),
    )


def study_cell(batches: Batches, new_RCV: Tensor, rewards_RM: Tensor, n: int, k: int) -> list[Row]:
    """One row per pair at one new policy."""
    toys, cells_RST = batches.toys, batches.cells_RST
    old_BT = at_cells(toys.logits_RCV.log_softmax(-1), cells_RST).flatten(0, 1)
    new_BT = at_cells(new_RCV.log_softmax(-1), cells_RST).flatten(0, 1)
    log_ratios_PN = (new_BT - old_BT).sum(-1).view(-1, n)
    rewards_PN = batch_rewards(batches, rewards_RM).view(-1, n)
    named = objectives(k)
    credits = {name: objective(rewards_PN, log_ratios_PN).flatten().float() for name, objective in named.items()}
    estimates = {}
    for name, loss in pairs(k):
        weights_BT = token_weights(loss)(new_BT.float(), old_BT.float(), credits[name])
        sums_RCV = weighted_scores(new_RCV, cells_RST, weights_BT)
        estimates[name, loss] = sums_RCV.flatten(1) * (n / cells_RST.shape[1])  # the mean over groups
    truth_RK = true_gradient(toys, new_RCV, rewards_RM, k).flatten(1)
    old_truth_RK = true_gradient(toys, toys.logits_RCV, rewards_RM, k).flatten(1)
    alphas = {
        name: objective.tempering(rewards_PN[::4], log_ratios_PN[::4]).mean().item()  # a quarter will do
        for name, objective in named.items()
        if isinstance(objective, SetAdvantage)
    }
    rows = []
    for (name, loss), estimate_RK in estimates.items():
        measured = measure(estimate_RK, estimates[REFERENCE], truth_RK, old_truth_RK, batches.num_toys)
        alpha = {"alpha": alphas[name]} if name in alphas else {}
        rows.append({"objective": name, "loss": loss, **asdict(measured), **alpha})
    return rows


def study(size: Size, seed: int) -> list[Row]:
    """One row per family, reward, n, k, drift, objective and loss; its measures are lists over the spreads."""
    rows: list[Row] = []
    for family in get_args(Family):
        batches = sample_batches(family, size, seed)
        for reward, rewards_of in REWARDS.items():
            rewards_RM = rewards_of(batches.toys)
            for n, k in size.settings:
                at_old = study_cell(batches, batches.toys.logits_RCV, rewards_RM, n, k)
                for drift in DRIFTS:
                    direction_RCV = drift_direction(batches, drift, rewards_RM, n, k)
                    new = [drifted(batches, direction_RCV, spread) for spread in size.spreads[1:]]
                    cells = [at_old, *(study_cell(batches, new_RCV, rewards_RM, n, k) for new_RCV in new)]
                    where = {"family": family, "reward": reward, "n": n, "k": k, "drift": drift}
                    rows += [{**where, **joined(parts)} for parts in zip(*cells, strict=True)]
    return rows


def joined(parts: tuple[Row, ...]) -> Row:
    """One row out of those of a pair at every spread."""
    numbers = [name for name, value in parts[0].items() if isinstance(value, float)]
    lists = {name: [float(f"{part[name]:.3g}") for part in parts] for name in numbers}
    return {**parts[0], **lists}


def to_json(rows: list[Row], size: Size, seed: int) -> str:
    """One row per line."""
    lines = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in rows)
    head = {"seed": seed, "toys": size.num_toys, "batches_per_toy": size.batches_per_toy, "tokens": NUM_TOKENS}
    head |= {"sequences_per_batch": size.num_sequences, "spreads": list(size.spreads)}
    return json.dumps(head)[:-1] + f', "rows": [\n{lines}\n]}}\n'


def main() -> None:
    """Run the study and write its tables, figure and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for sequence_study.{json,png}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few toys, two spreads, one (n, k)")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else Size()
    rows = study(size, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sequence_study.json").write_text(to_json(rows, size, arguments.seed))
    draw(rows, size.spreads, arguments.out / "sequence_study.png")
    print(markdown(rows, size.spreads))


if __name__ == "__main__":
    main()
