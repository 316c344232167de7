"""Figures of the study: the course of training, and what a learning rate buys and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from study_results import Result, StudyPlan, path_of, read, tuned_learning_rate, tuning_jobs

from maxk_lightning.evaluation.figures import COLOURS, PANEL, dress, look, new_figure, shared_legend

NUM_TRAINING_POINTS = 8
"Number of rollouts over which training curves are means: every rollout has other prompts."
SMALL_PANEL = (3.2, 2.7)
PANELS_PER_ROW = 4
AGED = ", age "
"Comes between the name of a method and the age of its rollouts."
TRAINING_PANELS = {"train/max_at_k/1": "max@1", "train/max_at_k/8": "max@8", "train/entropy": "entropy, nats per token"}


def training_figure(results_of: Mapping[str, Sequence[Result]]) -> Figure:
    """max@1, max@8 and entropy over the rollouts, means over seeds; by the name of the method."""
    figure = new_figure(PANEL[0] * len(TRAINING_PANELS), PANEL[1])
    grid = list(figure.subplots(1, len(TRAINING_PANELS)))
    for axes, (tag, label) in zip(grid, TRAINING_PANELS.items(), strict=True):
        for place, (name, results) in enumerate(results_of.items(), start=1):  # 0 is the base's look
            values = np.mean([result.curves[tag] for result in results], axis=0)
            width = max(1, len(values) // NUM_TRAINING_POINTS)
            points = [float(values[start : start + width].mean()) for start in range(0, len(values), width)]
            colour, marker, dash = look(place)
            centres = [(i + 0.5) * width for i in range(len(points))]
            axes.plot(centres, points, dash, color=colour, marker=marker, markersize=5, linewidth=2, label=name)
        dress(axes, "rollout", label)
    shared_legend(figure, grid)
    return figure


def age_figure(results_of: Mapping[str, Sequence[Result]], ks: Sequence[int]) -> Figure:
    """max@k over the age of rollouts, a panel per k, means over seeds; the method `NAME, age 16` is a point of NAME."""
    points_of: dict[str, dict[int, Sequence[Result]]] = {}
    for name, results in results_of.items():
        family, is_aged, age = name.rpartition(AGED)
        if is_aged:
            points_of.setdefault(family, {})[int(age)] = results
    all_ages = sorted({age for points in points_of.values() for age in points})
    figure = new_figure(PANEL[0] * len(ks), PANEL[1])
    grid = list(figure.subplots(1, len(ks), squeeze=False).flat)
    for axes, k in zip(grid, ks, strict=True):
        for place, (family, points) in enumerate(points_of.items(), start=1):  # 0 is the base's look
            ages = sorted(points)
            values = [np.mean([r.max_at_k_PK[:, r.ks.index(k)].mean() for r in points[age]]) for age in ages]
            colour, marker, dash = look(place)
            axes.plot(ages, values, dash, color=colour, marker=marker, markersize=5, linewidth=2, label=family)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(all_ages, [str(age) for age in all_ages])
        dress(axes, "age of rollouts, optimizer steps", f"max@{k}")
    shared_legend(figure, grid)
    return figure


def tradeoff_figure(plan: StudyPlan, results: Path, benchmark: str) -> Figure:
    """max@1 against the largest max@k on the validation problems, by learning rate: a panel per method.

    The other methods are grey behind it, the base policy is the cross, the chosen rate is ringed.
    """
    tries_of: dict[str, list[Result]] = {}
    for arm in plan.arms:
        jobs = tuning_jobs(plan, benchmark, arm) if plan.tuned_as(arm) == arm else []
        tries = [read(path_of(results, job)) for job in jobs if path_of(results, job).is_file()]
        if tries:
            tries_of[arm] = tries
    bases = [arm for arm, tries in tries_of.items() if tries[0].job.learning_rate == 0]
    shown = [arm for arm in tries_of if arm not in bases]
    num_columns = min(PANELS_PER_ROW, max(1, len(shown)))
    num_rows = max(1, -(-len(shown) // num_columns))
    figure = new_figure(SMALL_PANEL[0] * num_columns, SMALL_PANEL[1] * num_rows)
    panels = list(figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, arm in zip(panels, shown, strict=False):
        for other in shown:
            if other != arm:
                axes.plot(*_ends(tries_of[other]), color="#d9d9d9", linewidth=1, zorder=1)
        for base in bases:
            axes.plot(*_ends(tries_of[base]), "x", color="#000000", markersize=8, markeredgewidth=2, zorder=2)
        _draw_rates(axes, tries_of[arm], tuned_learning_rate(plan, results, benchmark, arm))
        axes.set_title(plan.label(arm), loc="left", fontsize=11)
        dress(axes, "", "")
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.supxlabel("validation max@1 (cross: base policy; ring: chosen learning rate)", fontsize=12)
    figure.supylabel(f"validation max@{plan.tuning['num_samples']}", fontsize=12)
    return figure


def _ends(tries: Sequence[Result]) -> tuple[list[float], list[float]]:
    """max@1 and the largest max@k of every try."""
    return tuple([float(t.max_at_k_PK[:, end].mean()) for t in tries] for end in (0, -1))  # type: ignore[return-value]


def _draw_rates(axes: Axes, tries: Sequence[Result], chosen: float | None) -> None:
    """Draw the tries of one method, each with its learning rate."""
    first, last = _ends(tries)
    axes.margins(0.09, 0.12)
    axes.plot(first, last, "-", color=COLOURS[0], marker="o", markersize=5, linewidth=2, zorder=3)
    for x, y, result in zip(first, last, tries, strict=True):
        rate = result.job.learning_rate
        axes.annotate(f"{rate:.1e}".replace("e-0", "e-").replace(".0e", "e"), (x, y), xytext=(5, -11),
                      textcoords="offset points", fontsize=8.5, zorder=5,
                      path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
        if rate == chosen:
            axes.plot(
                [x], [y], "o", color=COLOURS[1], markersize=12, markerfacecolor="none", markeredgewidth=2, zorder=4
            )
