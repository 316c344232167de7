"""Tables and figure of `sequence_study.py`, made from its rows alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Pair = tuple[str, str]

OF_ANOTHER_SCALE = ("GRPO", "on-policy, z-score")
"Objectives of which only the direction compares."
CLOSE_LOOK: tuple[Pair, ...] = (
    ("on-policy", "score function"),
    ("on-policy", "CISPO 2"),
    ("on-policy", "CISPO 5"),
    ("on-policy", "clip .2"),
    ("set, untempered", "CISPO 5"),
    ("set .7", "CISPO 5"),
    ("exact, self-normalised", "score function"),
    ("first order, LOO-1, clamp .2", "score function"),
)
"Pairs of the table by family, reward and drift."
CHALLENGERS: tuple[Pair, ...] = (
    ("set, untempered", "CISPO 5"),
    ("set .7", "CISPO 5"),
    ("set .9", "CISPO 5"),
    ("on-policy, LOO-1", "CISPO 5"),
    ("on-policy", "CISPO 2"),
    ("on-policy", "CISPO, no cut"),
)
"Pairs that are weighed against on-policy credits x CISPO, sample by sample."
DRAWN: dict[Pair, str] = {
    ("on-policy", "CISPO 5"): "on-policy credit x CISPO, cut 5",
    ("set .7", "CISPO 5"): "set advantage .7 x CISPO, cut 5",
    ("set, untempered", "CISPO 5"): "set advantage, untempered x CISPO, cut 5",
    ("on-policy", "score function"): "on-policy credit, ratios ignored",
    ("on-policy", "clip .2"): "on-policy credit x PPO clip .2",
    ("exact, centred", "score function"): "exact, unbounded",
    ("exact, self-normalised", "score function"): "exact, self-normalised",
    ("first order, LOO-1", "score function"): "first order, unbounded",
    ("first order, LOO-1, clamp .2", "score function"): "first order, clamp .2",
}
"Pairs of the figure and their labels."


def markdown(rows: list[Row], spreads: Sequence[float]) -> str:
    """All tables, each mean over what it does not name."""
    parts = []
    for n, k in settings(rows):
        chosen = [row for row in rows if (row["n"], row["k"]) == (n, k)]
        parts += [cosine_table(chosen, spreads, f"cosine / largest, n = {n}, k = {k}")]
    parts += [gain_table(rows), close_look_table(rows, spreads)]
    for n, k in settings(rows):
        chosen = [row for row in rows if (row["n"], row["k"]) == (n, k)]
        parts += [bias_table(chosen, spreads, f"bias / variance, n = {n}, k = {k}")]
    return "\n".join(parts)


def settings(rows: list[Row]) -> list[tuple[int, int]]:
    """The (n, k) of the study."""
    return list(dict.fromkeys((row["n"], row["k"]) for row in rows))


def pairs_of(rows: list[Row]) -> list[Pair]:
    """Objectives and losses of the study."""
    return list(dict.fromkeys((row["objective"], row["loss"]) for row in rows))


def over_spreads(rows: list[Row], quantity: str, pair: Pair, **where: Any) -> torch.Tensor:
    """A quantity of one pair in every place of the study, [places, spreads]."""
    wanted = {"objective": pair[0], "loss": pair[1], **where}
    found = [row[quantity] for row in rows if all(row[key] == value for key, value in wanted.items())]
    return torch.tensor(found, dtype=torch.float64)


def table(head: str, columns: Sequence[str], lines: list[tuple[str, list[str]]]) -> str:
    """A Markdown table."""
    texts = [f"| {head} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(texts + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines]) + "\n"


def cosine_table(rows: list[Row], spreads: Sequence[float], head: str) -> str:
    """Mean cosine and largest |estimate| / |true gradient of the old policy| of every pair."""
    lines = []
    for pair in pairs_of(rows):
        cosines = over_spreads(rows, "cosine", pair).mean(0).tolist()
        largest = over_spreads(rows, "largest", pair).amax(0).tolist()
        is_comparable = pair[0] not in OF_ANOTHER_SCALE
        cells = [f"{c:.2f} / {short(g) if is_comparable else '-'}" for c, g in zip(cosines, largest, strict=True)]
        lines += [(" x ".join(pair), cells)]
    return table(head, [f"{spread:g}" for spread in spreads], lines)


def bias_table(rows: list[Row], spreads: Sequence[float], head: str) -> str:
    """Median over places of bias and variance; means would be those of the worst place."""
    lines = []
    for pair in pairs_of(rows):
        if pair[0] in OF_ANOTHER_SCALE:
            continue
        squared = over_spreads(rows, "squared_bias", pair).median(0).values.tolist()
        variances = over_spreads(rows, "variance", pair).median(0).values.tolist()
        cells = [f"{short(math.sqrt(max(s, 0.0)))} / {short(v)}" for s, v in zip(squared, variances, strict=True)]
        lines += [(" x ".join(pair), cells)]
    return table(head, [f"{spread:g}" for spread in spreads], lines)


def gain_table(rows: list[Row]) -> str:
    """Mean gain in cosine off-policy, and in how many places it is above and below 0 by two standard errors."""
    lines = []
    for pair in CHALLENGERS:
        cells = []
        for n, k in settings(rows):
            gains = over_spreads(rows, "gain", pair, n=n, k=k)[:, 1:]
            errors = over_spreads(rows, "gain_error", pair, n=n, k=k)[:, 1:]
            better, worse = int((gains > 2 * errors).sum()), int((gains < -2 * errors).sum())
            cells += [f"{gains.mean():+.3f}, {gains.min():+.2f} to {gains.max():+.2f}; {better} / {worse}"]
        lines += [(" x ".join(pair), cells)]
    num_places = over_spreads(rows, "gain", CHALLENGERS[0], n=settings(rows)[0][0], k=settings(rows)[0][1])[
        :, 1:
    ].numel()
    head = f"gain in cosine over on-policy x CISPO 5: mean, range; better / worse of {num_places} places"
    return table(head, [f"n = {n}, k = {k}" for n, k in settings(rows)], lines)


def close_look_table(rows: list[Row], spreads: Sequence[float]) -> str:
    """Cosine by family, reward and drift for a few pairs, at a spread near 1, mean over n and k."""
    at = min(range(len(spreads)), key=lambda index: abs(spreads[index] - 1.0))
    lines = []
    for family, reward, drift in dict.fromkeys((row["family"], row["reward"], row["drift"]) for row in rows):
        where = {"family": family, "reward": reward, "drift": drift}
        cosines = [over_spreads(rows, "cosine", pair, **where)[:, at].mean().item() for pair in CLOSE_LOOK]
        lines += [(f"{family}, {reward}, {drift}", [f"{cosine:.2f}" for cosine in cosines])]
    return table(f"cosine, spread {spreads[at]:g}", [" x ".join(pair) for pair in CLOSE_LOOK], lines)


def short(value: float) -> str:
    """Two or three figures, powers of ten where large."""
    return f"{value:.2f}" if abs(value) < 10 else (f"{value:.0f}" if abs(value) < 1000 else f"{value:.0e}")


def draw(rows: list[Row], spreads: Sequence[float], path: Path) -> None:
    """Cosine and largest gradient over the spread of log rho, one column of panels per (n, k)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(settings(rows))
    figure, panels = plt.subplots(2, columns, figsize=(5 * columns, 8), sharex=True, sharey="row", squeeze=False)
    for column, (n, k) in enumerate(settings(rows)):
        for pair, label in DRAWN.items():
            cosines = over_spreads(rows, "cosine", pair, n=n, k=k).mean(0)
            largest = over_spreads(rows, "largest", pair, n=n, k=k).amax(0)
            for panel, series in zip(panels[:, column], (cosines, largest), strict=True):
                panel.plot(spreads, series, marker="o", markersize=3, label=label)
                panel.grid(alpha=0.3)
        panels[0, column].set(title=f"n = {n}, k = {k}", ylim=(-0.4, 1.02))
        panels[1, column].set(xlabel="standard deviation of log rho", yscale="log")
    panels[0, 0].set_ylabel("cosine with the true max@k gradient")
    panels[1, 0].set_ylabel("largest |estimate| / |gradient of the old policy|")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncol=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=90)
