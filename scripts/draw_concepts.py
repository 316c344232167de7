"""Draw the figures of docs/concepts.md, from the estimators and objectives of the package. Nothing is sampled.

python scripts/draw_concepts.py [--out docs/concepts]      # seconds; also prints the numbers that the page states
"""

import argparse
import itertools
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from maxk_lightning.estimators import max_at_k
from maxk_lightning.objectives import GRPO, RLOO, ExactMaxAtK, MaxAtK, Objective, group_diagnostics

matplotlib.use("agg")
import matplotlib.pyplot as plt  # after the choice of a backend

READINGS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
"How often each reading of the phrase is the meant one: it makes answer A, B or C right."
ANSWERS = ("A", "B", "C", "other")
START = torch.tensor([0.3, 0.2, 0.15, 0.35], dtype=torch.float64)
"Probabilities of the answers before training."
NUM_COMPLETIONS = 8
NUM_STEPS = 400
RATE = 0.5
KS = (1, 2, 4, 8, 16, 32, 64, 128)
PATTERNS_PN = torch.tensor(list(itertools.product((0.0, 1.0), repeat=NUM_COMPLETIONS)), dtype=torch.float64)
"All ways in which n answers can be right or wrong."


def value(answers_V: Tensor, k: int) -> float:
    """max@k, exactly: the chance that one of k answers is the meant one, over readings."""
    return float((READINGS * (1 - (1 - answers_V[:3]) ** k)).sum())


def gradient(answers_V: Tensor, objective: Objective) -> Tensor:
    """Expected gradient of the logits over all groups of n answers and all readings."""
    credits_PN = objective(PATTERNS_PN, torch.zeros_like(PATTERNS_PN))
    num_right_P = PATTERNS_PN.sum(1)
    total_V = torch.zeros_like(answers_V)
    for reading, share in enumerate(READINGS):
        right = answers_V[reading]
        chances_P = right**num_right_P * (1 - right) ** (NUM_COMPLETIONS - num_right_P)
        wrong_V = answers_V.clone()
        wrong_V[reading] = 0
        wrong_V /= wrong_V.sum()
        right_V = torch.zeros_like(answers_V)
        right_V[reading] = 1
        for_right = (chances_P * (credits_PN * PATTERNS_PN).sum(1)).sum()
        for_wrong = (chances_P * (credits_PN * (1 - PATTERNS_PN)).sum(1)).sum()
        total_V += share * (for_right * (right_V - answers_V) + for_wrong * (wrong_V - answers_V))
    return total_V


def trained(objective: Objective) -> Tensor:
    """Probabilities of the answers after each step of exact gradient ascent, [steps + 1, answers]."""
    logits_V = START.log()
    path = [START]
    for _ in range(NUM_STEPS):
        logits_V = logits_V + RATE * gradient(path[-1], objective)
        path.append(logits_V.softmax(0))
    return torch.stack(path)


def draw_narrowing(out: Path) -> None:
    """max@k before and after training, and what became of the answers."""
    paths = {"GRPO": trained(GRPO()), "MaxAtK(k=4)": trained(MaxAtK(k=4))}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), width_ratios=(1.3, 1, 1))
    for name, answers_V in {"before": START, **{name: path[-1] for name, path in paths.items()}}.items():
        values = [value(answers_V, k) for k in KS]
        axes[0].plot(KS, values, marker="o", label=name)
        print(f"{name:12} max@k " + " ".join(f"{k}: {v:.3f}" for k, v in zip(KS, values, strict=True)))
    axes[0].set(
        xscale="log", xlabel="k", ylabel="max@k", xticks=KS, xticklabels=KS, title="value of k answers", ylim=(0, 1.02)
    )
    axes[0].minorticks_off()
    axes[0].legend()
    for axis, (name, path) in zip(axes[1:], paths.items(), strict=True):
        axis.stackplot(range(len(path)), path.T, labels=ANSWERS, alpha=0.8)
        axis.set(xlabel="step", title=f"answers under {name}", ylim=(0, 1), xlim=(0, NUM_STEPS))
    axes[2].legend(loc="upper left", bbox_to_anchor=(1, 1), title="answer")
    _save(figure, out / "narrowing.png")


def draw_estimator(out: Path) -> None:
    """Weight of each sample in the estimate of max@k, from the worst to the best."""
    places = torch.arange(NUM_COMPLETIONS)
    steps_PN = (places >= places[:, None]).double()  # row i: the samples from place i on have a reward of 1
    at_least_PK = max_at_k(steps_PN, [1, 2, 4, 8])
    weights_PK = at_least_PK - torch.cat([at_least_PK[1:], torch.zeros(1, 4, dtype=torch.float64)])
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.6), sharey=True)
    for axis, k, weights_P in zip(axes, (1, 2, 4, 8), weights_PK.T, strict=True):
        axis.bar(places + 1, weights_P)
        axis.set(title=f"max@{k}", xlabel="sample, worst to best", xticks=places + 1)
    axes[0].set_ylabel("weight of its reward")
    _save(figure, out / "estimator.png")


def draw_credits(out: Path) -> None:
    """Credits of the samples of one group under several objectives."""
    rewards_PN = torch.tensor([[0, 0, 0, 0.25, 0.25, 0.5, 0.75, 1]], dtype=torch.float64)
    objectives: dict[str, Objective] = {
        "RLOO (max@1)": RLOO(),
        "MaxAtK(k=2)": MaxAtK(k=2),
        "MaxAtK(k=4)": MaxAtK(k=4),
        "MaxAtK(k=4, loo1)": MaxAtK(k=4, baseline="loo1"),
    }
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True)
    for axis, (name, objective) in zip(axes, objectives.items(), strict=True):
        credits_N = objective(rewards_PN, torch.zeros_like(rewards_PN))[0]
        axis.bar(range(NUM_COMPLETIONS), credits_N, color=["C0" if c >= 0 else "C3" for c in credits_N])
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=name, xlabel="reward of the sample")
        axis.set_xticks(range(NUM_COMPLETIONS), [f"{r:g}" for r in rewards_PN[0].tolist()], fontsize=7)
        print(f"{name:18} credits " + " ".join(f"{c:+.3f}" for c in credits_N.tolist()))
    axes[0].set_ylabel("credit")
    _save(figure, out / "credits.png")


def draw_drift(out: Path) -> None:
    """What is left of the subsets, and how large exact credits become, as log-ratios spread (evenly, like a normal)."""
    spreads = torch.linspace(0, 2, 41, dtype=torch.float64)
    shares = (torch.arange(NUM_COMPLETIONS, dtype=torch.float64) + 0.5) / NUM_COMPLETIONS
    quantiles_N = torch.distributions.Normal(0.0, 1.0).icdf(shares)
    quantiles_N = (quantiles_N / quantiles_N.std(correction=0))[torch.tensor([3, 6, 0, 5, 2, 7, 1, 4])]
    log_ratios_PN = spreads[:, None] * quantiles_N
    rewards_PN = torch.tensor([[0, 0, 0, 0.25, 0.25, 0.5, 0.75, 1]], dtype=torch.float64).expand(len(spreads), -1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for k in (1, 2, 4):
        left = group_diagnostics(rewards_PN, log_ratios_PN, k).effective_fraction_P
        axes[0].plot(spreads, left, label=f"k = {k}")
        print(f"k = {k}: effective subsets at .5, 1, 2: " + " ".join(f"{left[i]:.2f}" for i in (10, 20, 40)))
    axes[0].set(
        xlabel="standard deviation of log rho",
        ylabel="subsets that count",
        ylim=(0, 1.02),
        title="subsets of 8 samples",
    )
    for name, objective in {
        "exact, no clip": ExactMaxAtK(k=4, ratio_clip=None),
        "exact, ratio_clip 1.5": ExactMaxAtK(k=4, ratio_clip=1.5),
        "MaxAtK": MaxAtK(k=4),
    }.items():
        largest = objective(rewards_PN, log_ratios_PN).abs().amax(1)
        axes[1].plot(spreads, largest, label=name)
        print(f"{name:24} largest credit at 0, 1, 2: " + " ".join(f"{largest[i]:.2f}" for i in (0, 20, 40)))
    axes[1].set(
        xlabel="standard deviation of log rho", ylabel="largest credit", yscale="log", title="credits for max@4"
    )
    for axis in axes:
        axis.legend()
    _save(figure, out / "drift.png")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "concepts")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for draw in (draw_narrowing, draw_estimator, draw_credits, draw_drift):
        draw(out)


if __name__ == "__main__":
    main()
