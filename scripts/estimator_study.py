"""The one-token study: how well do credits follow the true max@k gradient where a completion is a single action?

Here the ratio of a sequence is the ratio of a token, and it stays near 1 at any drift worth the name. Completions of a
language model have hundreds of tokens, and what holds for them is in `sequence_study.py`. This study isolates what the
credits themselves lose or keep.

Toys: a softmax policy over 40 actions with rewards uniform in [0, 1] and logits from a standard normal. The policy is
moved along its own exact max@k gradient until KL(old || new) has a given value, 32 groups of n are sampled from the
*old* policy, and the sum over groups of credit times grad log pi_new is compared with the exact gradient at the new
policy: cosine (mean over toys) and relative error (median).

The spread between toys is in the JSON. Writes a table, a figure and the numbers:

    python scripts/estimator_study.py --out DIR [--json FILE] [--toys 400] [--seed 0]

Shapes: Y toys, V actions, P = Y * 32 groups, N samples per group.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxk_lightning.evaluation.figures import dress, look, new_figure, shared_legend
from maxk_lightning.objectives import ExactMaxAtK, MaxAtK, Objective, OffPolicyMaxAtK, group_diagnostics

NUM_ACTIONS = 40
GROUPS_PER_TOY = 32
DRIFTS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3)
SETTINGS = ((64, 8), (8, 4), (8, 8))  # (n, k)
ALL_SAMPLES = (
    "k = n: one subset, of all samples;\ncentred and self-normalised forms need others\n"
    "and are not defined (6 of 10 lines are left)"
)
Credits = Callable[[Tensor, Tensor], Tensor]
Row = dict[str, Any]


def methods(n: int, k: int) -> dict[str, Credits]:
    """What is compared; baselines that need k < n are left out at k = n."""
    on_policy: Objective = MaxAtK(k) if k < n else MaxAtK(k, "loo1")
    named: dict[str, Credits] = {
        "exact, centred": ExactMaxAtK(k, ratio_clip=None),
        "exact, self-normalised": ExactMaxAtK(k, self_normalise=True, ratio_clip=None),
        "exact, LOO-1": ExactMaxAtK(k, "loo1", ratio_clip=None),
        "exact, LOO-1, ratios clipped at 2": ExactMaxAtK(k, "loo1", ratio_clip=2.0),
        "PPO ratio, no clip": lambda rewards_PN, log_ratios_PN: (
            log_ratios_PN.exp() * on_policy(rewards_PN, log_ratios_PN)
        ),
        "ratios ignored": on_policy,
        "PPO ratio, sequence clip 0.2": lambda rewards_PN, log_ratios_PN: clipped(
            on_policy(rewards_PN, log_ratios_PN), log_ratios_PN.exp()
        ),
        "first order, centred": OffPolicyMaxAtK(k, "mean", clamp=None),
        "first order, centred, clamp 0.2": OffPolicyMaxAtK(k, "mean", clamp=0.2),
        "first order, LOO-1": OffPolicyMaxAtK(k, "loo1", clamp=None),
    }
    needs_others = (
        "exact, centred",
        "exact, self-normalised",
        "first order, centred",
        "first order, centred, clamp 0.2",
    )
    return {name: method for name, method in named.items() if k < n or name not in needs_others}


def clipped(advantages_PN: Tensor, ratios_PN: Tensor, clip: float = 0.2) -> Tensor:
    """Gradient weights of the clipped surrogate with one ratio per sequence."""
    is_clipped_PN = torch.where(advantages_PN > 0, ratios_PN > 1 + clip, ratios_PN < 1 - clip)
    return torch.where(is_clipped_PN, 0.0, ratios_PN * advantages_PN)


def exact_gradient(logits_YV: Tensor, rewards_YV: Tensor, k: int) -> Tensor:
    """Autograd's gradient of sum_v r_v (F(v)^k - F(below v)^k), the exact max@k."""
    logits_YV = logits_YV.detach().requires_grad_()
    ordered_YV, order_YV = rewards_YV.sort(dim=-1)
    up_to_YV = logits_YV.softmax(-1).gather(-1, order_YV).cumsum(-1).clamp(max=1.0)
    below_YV = torch.nn.functional.pad(up_to_YV[:, :-1], (1, 0))
    max_at_k = (ordered_YV * (up_to_YV**k - below_YV**k)).sum()
    return torch.autograd.grad(max_at_k, logits_YV)[0]


def drifted(old_YV: Tensor, rewards_YV: Tensor, k: int, kl: float) -> Tensor:
    """Logits moved along the exact gradient until KL(old || new) = kl, by bisection."""
    direction_YV = exact_gradient(old_YV, rewards_YV, k)
    low_Y1, high_Y1 = torch.zeros_like(old_YV[:, :1]), torch.full_like(old_YV[:, :1], 1e4)
    for _ in range(80):
        step_Y1 = (low_Y1 + high_Y1) / 2
        new_YV = old_YV + step_Y1 * direction_YV
        kl_Y1 = (old_YV.softmax(-1) * (old_YV.log_softmax(-1) - new_YV.log_softmax(-1))).sum(-1, keepdim=True)
        is_near_Y1 = kl_Y1 < kl
        low_Y1, high_Y1 = torch.where(is_near_Y1, step_Y1, low_Y1), torch.where(is_near_Y1, high_Y1, step_Y1)
    return old_YV + low_Y1 * direction_YV


def study(n: int, k: int, kl: float, num_toys: int, seed: int) -> list[Row]:
    """One row per method: mean and spread over toys of the cosine, and the diagnostics of the groups."""
    generator = torch.Generator().manual_seed(seed)
    rewards_YV = torch.rand(num_toys, NUM_ACTIONS, dtype=torch.float64, generator=generator)
    old_YV = torch.randn(num_toys, NUM_ACTIONS, dtype=torch.float64, generator=generator)
    new_YV = drifted(old_YV, rewards_YV, k, kl)
    gradient_YV = exact_gradient(new_YV, rewards_YV, k)
    actions_YN = torch.multinomial(old_YV.softmax(-1), GROUPS_PER_TOY * n, replacement=True, generator=generator)
    rewards_PN = rewards_YV.gather(-1, actions_YN).view(-1, n)
    log_ratios_PN = (new_YV.log_softmax(-1) - old_YV.log_softmax(-1)).gather(-1, actions_YN).view(-1, n)
    diagnostics = group_diagnostics(rewards_PN, log_ratios_PN, k)
    rows = []
    for name, method in methods(n, k).items():
        credits_YN = method(rewards_PN, log_ratios_PN).view(num_toys, -1)
        sums_YV = torch.zeros_like(old_YV).scatter_add(-1, actions_YN, credits_YN)
        estimate_YV = sums_YV - credits_YN.sum(-1, keepdim=True) * new_YV.softmax(-1)
        cosines_Y = torch.cosine_similarity(estimate_YV, gradient_YV, dim=-1)
        # 32 estimates are summed: the expectation of an unbiased one is 32 times the gradient
        errors_Y = (estimate_YV / GROUPS_PER_TOY - gradient_YV).norm(dim=-1) / gradient_YV.norm(dim=-1)
        rows.append(
            {
                "n": n,
                "k": k,
                "kl": kl,
                "method": name,
                "cosine": round(cosines_Y.mean().item(), 4),
                "cosine_std_over_toys": round(cosines_Y.std().item(), 4),
                "relative_error": round(errors_Y.median().item(), 4),
                "log_normaliser_std": round(diagnostics.log_normaliser_P.std().item(), 4),
                "effective_fraction": round(diagnostics.effective_fraction_P.mean().item(), 4),
                "log_ratio_std": round(diagnostics.log_ratio_std_P.mean().item(), 4),
            }
        )
    return rows


def markdown(rows: list[Row]) -> str:
    """Per (n, k) a table of cosines over drift, one of errors, and the diagnostics that go with each drift."""
    lines = []
    for n, k in SETTINGS:
        cells = {(row["method"], row["kl"]): row for row in rows if (row["n"], row["k"]) == (n, k)}
        for quantity in ("cosine", "relative_error"):
            lines += [f"| {quantity}, n={n}, k={k} | " + " | ".join(f"KL {kl:g}" for kl in DRIFTS) + " |"]
            lines += ["|---" * (len(DRIFTS) + 1) + "|"]
            for method in methods(n, k):
                lines += [f"| {method} | " + " | ".join(f"{cells[method, kl][quantity]:.2f}" for kl in DRIFTS) + " |"]
            lines += [""]
        lines += [f"| diagnostics, n={n}, k={k} | " + " | ".join(f"KL {kl:g}" for kl in DRIFTS) + " |"]
        lines += ["|---" * (len(DRIFTS) + 1) + "|"]
        for quantity in ("log_normaliser_std", "effective_fraction", "log_ratio_std"):
            lines += [f"| {quantity} | " + " | ".join(f"{cells[method, kl][quantity]:.2f}" for kl in DRIFTS) + " |"]
        lines += [""]
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Cosine and error over drift, one column of panels per (n, k)."""
    figure = new_figure(5 * len(SETTINGS), 8.6, dpi=90)
    panels = figure.subplots(2, len(SETTINGS), sharex=True, sharey="row")
    names = list(methods(*SETTINGS[0]))
    for column, (n, k) in enumerate(SETTINGS):
        for method in methods(n, k):
            chosen = [row for row in rows if (row["n"], row["k"], row["method"]) == (n, k, method)]
            colour, marker, dash = look(names.index(method))
            for panel, quantity in zip(panels[:, column], ("cosine", "relative_error"), strict=True):
                series = [row[quantity] for row in chosen]
                panel.plot(DRIFTS, series, dash, marker=marker, markersize=6, label=method, color=colour)
        dress(panels[0, column], "", "cosine with the true max@k gradient" * (column == 0))
        dress(
            panels[1, column],
            "drift KL(old || new), nats",
            "|estimate - gradient| / |gradient|, median" * (column == 0),
        )
        panels[0, column].set(ylim=(-0.4, 1.02))
        panels[1, column].set(yscale="log")
        panels[0, column].set_title(f"n = {n}, k = {k}", fontsize=12)
        if k == n:
            panels[0, column].text(
                0.5, 0.36, ALL_SAMPLES, transform=panels[0, column].transAxes, ha="center", fontsize=10.5
            )
    shared_legend(figure, list(panels.flat))
    figure.savefig(path)


def to_json(rows: list[Row], num_toys: int, seed: int) -> str:
    """One row per line."""
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return f'{{"toys": {num_toys}, "seed": {seed}, "groups_per_toy": {GROUPS_PER_TOY}, "rows": [\n{lines}\n]}}\n'


def main() -> None:
    """Run the study and write its table, figure and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for estimator_study.{md,png}")
    parser.add_argument("--json", type=Path, help="file for the numbers; default: OUT/estimator_study.json")
    parser.add_argument("--toys", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = [row for n, k in SETTINGS for kl in DRIFTS for row in study(n, k, kl, arguments.toys, arguments.seed)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    json_path = arguments.json or arguments.out / "estimator_study.json"
    json_path.write_text(to_json(rows, arguments.toys, arguments.seed))
    (arguments.out / "estimator_study.md").write_text(markdown(rows))
    draw(rows, arguments.out / "estimator_study.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
