"""Figures, drawn without pyplot's global state: safe in threads, callbacks and servers.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers and line styles tell them apart in grey.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from maxk_lightning.evaluation.estimates import METRICS, Estimate, Metric
from maxk_lightning.evaluation.prediction import PREDICTED
from maxk_lightning.evaluation.realised import PREFIX
from maxk_lightning.evaluation.samples import ENTROPY_BIN

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A5C00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
LEGEND_ROW = 0.22
"Height in inches of a row of a legend."
WHISKER_SHIFT = 0.04
"Powers of 2 by which the intervals of realised best-of-k are shifted, so that none hides another."
REALISED_DASHES = ((0, (4, 1.5)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.2, 1.5)), (0, (9, 3)))
"Dashes of realised best-of-k, one per selector, in units of the width of the line; then again from the first."
PREDICTED_DASH = (0, (2.5, 1.5))
"Dash of curves beyond the samples; their bands are hatched."
GREY = "#555555"
PANEL = (5.2, 3.9)
"Width and height in inches of every panel: side by side on a page their letters have the same size."
WIDTH = 2.0
MAX_WIDER = 4
"Number of first names whose lines are wider, the first the widest."
HANDLE = 3.5
"Length of the lines in a legend: long enough to show their dashes."
MAX_COLUMNS = 4
"Columns of a legend below several panels."
Z_95 = 1.96
"Quantile of the normal distribution for 95 %, two-sided."
Curves = Mapping[str, Sequence[Estimate]]


def label_of(metric: Metric) -> str:
    """Return the name of a metric for axes and tables.

    >>> label_of("max_at_k"), label_of("realised:public+agreement")
    ('max@k', 'best of k by public+agreement')
    """
    if metric.startswith(PREFIX):
        return f"best of k by {metric.removeprefix(PREFIX)}"
    return metric.replace("_at_k", "@k")


class HasCurves(Protocol):
    """Anything with a name and a curve over k: a finished run, or published numbers."""

    @property
    def name(self) -> str:
        """Name in the legend."""
        ...

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        ...

    def curve(self, metric: Metric) -> Sequence[Estimate]:
        """Return the points over k; none where the metric is unknown."""
        ...


def curves(runs: Sequence[HasCurves], metrics: Sequence[Metric] = METRICS, selectors: Sequence[str] = ()) -> Figure:
    """Draw max@k and pass@k over k (the paper's Figure 1), one panel per benchmark and metric, with bands.

    Args:
        runs: Runs whose curves are drawn.
        metrics: Metrics, one column of panels each.
        selectors: Names of selectors whose realised best-of-k is drawn dashed below max@k in the colour of the run,
            where a run has it, with intervals as thin lines beside the points.

    Predictions beyond the samples of a run are dashed, without markers, in a hatched band.

    Raises:
        ValueError: no run is given.
    """
    if not runs:
        raise ValueError("curves needs at least one run")
    benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
    names = list(dict.fromkeys(run.name for run in runs))
    height = PANEL[1] * len(benchmarks) + LEGEND_ROW * len(selectors)
    figure = new_figure(PANEL[0] * len(metrics), height)
    grid = figure.subplots(len(benchmarks), len(metrics), squeeze=False)
    for row, benchmark in enumerate(benchmarks):
        on_it = [run for run in runs if run.benchmark == benchmark]
        for axes, metric in zip(grid[row], metrics, strict=True):
            draw_curves(axes, {run.name: run.curve(metric) for run in on_it}, label_of(metric), names)
            if metric == "max_at_k":
                _draw_realised(axes, on_it, names, selectors)
            _draw_predicted(axes, on_it, names, metric)
            axes.set_ylim(_range(on_it, selectors))
            axes.set_title(benchmark, loc="left", fontsize=12)
    shared_legend(figure, list(grid.flat))
    return figure


def difference_curves(differences: Mapping[str, Curves], names: Sequence[str], label: str) -> Figure:
    """Draw differences over k, one panel per run that is subtracted: they show what overlapping bands hide.

    Args:
        differences: Name of what is subtracted -> name of a run -> differences at every k.
        names: Names in the order of the curves that these are differences of, so that all keep their looks.
        label: Label of the vertical axis.
    """
    figure = new_figure(PANEL[0] * len(differences), PANEL[1])
    panels = list(figure.subplots(1, len(differences), squeeze=False).flat)
    for axes, (subtracted, lines) in zip(panels, differences.items(), strict=True):
        axes.axhline(0.0, color=GREY, linewidth=1)
        draw_curves(axes, lines, label, names)
        axes.set_title(f"against {subtracted}", loc="left", fontsize=12)
    shared_legend(figure, panels)
    return figure


def _draw_realised(axes: Axes, runs: Sequence[HasCurves], names: Sequence[str], selectors: Sequence[str]) -> None:
    """Draw what selectors realised of max@k; the legend shows in grey which dashes belong to which selector."""
    for place, selector in enumerate(selectors):
        metric, dash = f"{PREFIX}{selector}", REALISED_DASHES[place % len(REALISED_DASHES)]
        measured = [run for run in runs if run.curve(metric)]
        for run in measured:
            colour, marker, _ = look(names.index(run.name))
            points = run.curve(metric)
            ks, values = [point.k for point in points], [point.value for point in points]
            axes.plot(
                ks, values, linestyle=dash, color=colour, marker=marker, markersize=5, markerfacecolor="white",
                linewidth=1.5,
            )  # fmt: skip
            shift = 2 ** (WHISKER_SHIFT * (1 + place * len(names) + names.index(run.name)))
            banded = [point for point in points if point.low is not None and point.high is not None]
            lows, highs = [point.low or 0.0 for point in banded], [point.high or 0.0 for point in banded]
            axes.vlines([shift * point.k for point in banded], lows, highs, color=colour, linewidth=1, alpha=0.6)
        if measured:
            axes.plot([], [], linestyle=dash, color=GREY, linewidth=1.5, label=label_of(metric))


def _draw_predicted(axes: Axes, runs: Sequence[HasCurves], names: Sequence[str], metric: Metric) -> None:
    """Continue from the last measured point of every run that predicts beyond it; the legend explains it in grey."""
    predicting = [run for run in runs if run.curve(f"{PREDICTED}{metric}")]
    for run in predicting:
        colour, _, _ = look(names.index(run.name))
        points = run.curve(f"{PREDICTED}{metric}")
        joined = [*run.curve(metric)[-1:], *points]
        axes.plot(
            [point.k for point in joined], [point.value for point in joined],
            linestyle=PREDICTED_DASH, color=colour, linewidth=WIDTH,
        )  # fmt: skip
        banded = [point for point in points if point.low is not None and point.high is not None]
        lows, highs = [point.low or 0.0 for point in banded], [point.high or 0.0 for point in banded]
        axes.fill_between(
            [point.k for point in banded], lows, highs, facecolor="none", edgecolor=colour, hatch="///", alpha=0.3,
            linewidth=0,
        )  # fmt: skip
    if predicting:
        axes.plot([], [], linestyle=PREDICTED_DASH, color=GREY, linewidth=WIDTH, label="predicted, not measured")
        _set_ticks(
            axes, {point.k for run in runs for name in (metric, f"{PREDICTED}{metric}") for point in run.curve(name)}
        )


def _range(runs: Sequence[HasCurves], selectors: Sequence[str]) -> tuple[float, float]:
    """One range for all metrics of a benchmark, so that panels compare by eye."""
    predicted = [f"{PREDICTED}{metric}" for metric in METRICS]
    metrics = [*METRICS, *predicted, *(f"{PREFIX}{selector}" for selector in selectors)]
    points = [point for run in runs for metric in metrics for point in run.curve(metric)]
    lows = [point.value if point.low is None else point.low for point in points]
    highs = [point.value if point.high is None else point.high for point in points]
    margin = max(0.04 * (max(highs) - min(lows)), 1e-3)
    return min(lows) - margin, max(highs) + margin


def curve_figure(lines: Curves, label: str, title: str) -> Figure:
    """Draw one panel of curves, for a logger's page: small enough for TensorBoard's cards."""
    figure = new_figure(*PANEL, dpi=100)
    axes = figure.add_subplot()
    draw_curves(axes, lines, label, list(lines))
    axes.set_title(title, loc="left", fontsize=12)
    axes.legend(frameon=False, fontsize=10.5, handlelength=HANDLE)
    return figure


def draw_curves(axes: Axes, lines: Curves, label: str, names: Sequence[str]) -> None:
    """Draw lines over k on a log2 axis; a name's place in `names` decides its look, the same in every panel."""
    ks: set[int] = set()
    for name, points in lines.items():
        if not points:
            continue
        colour, marker, dash = look(names.index(name))
        line_ks = [point.k for point in points]
        ks.update(line_ks)
        values = [point.value for point in points]
        width = WIDTH + max(0, min(len(names), MAX_WIDER) - 1 - names.index(name))  # one that coincides shows below
        axes.plot(line_ks, values, dash, color=colour, marker=marker, linewidth=width, markersize=5.5, label=name)
        banded = [point for point in points if point.low is not None and point.high is not None]
        if banded:
            lows, highs = [point.low or 0.0 for point in banded], [point.high or 0.0 for point in banded]
            axes.fill_between([point.k for point in banded], lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    _set_ticks(axes, ks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
    dress(axes, "k (samples per problem)", label)


def entropy_densities(counts_of: Mapping[str, Mapping[int, int]]) -> Figure:
    """Draw the density of per-token entropies of each run (the paper's Figure 2); the mass near 0 needs a log axis."""
    names = list(counts_of)
    figure = new_figure(*PANEL)
    axes = figure.add_subplot(yscale="log")
    dress(axes, "entropy of a token (nats)", "density")
    for place, name in enumerate(names):
        counts = counts_of[name]
        num_tokens = sum(counts.values())
        if not num_tokens:
            continue
        density = np.zeros(max(counts) + 1)
        for bin_, count in counts.items():
            density[bin_] = count / num_tokens / ENTROPY_BIN
        colour, _, dash = look(place)
        edges = np.arange(len(density) + 1) * ENTROPY_BIN
        density = np.where(density > 0, density, np.nan)
        # Without a baseline empty bins are gaps; lines down to it would hide the other runs.
        axes.stairs(density, edges, baseline=None, color=colour, linestyle=dash, linewidth=1.8, alpha=0.9, label=name)
    axes.legend(frameon=False, fontsize=10.5, handlelength=HANDLE)
    return figure


def solve_rates(
    baseline: Mapping[str, float],
    trained: Mapping[str, float],
    names: tuple[str, str],
    num_samples: tuple[int, int],
) -> Figure:
    """Scatter solve rates problem by problem, around a band that chance explains.

    Args:
        baseline: Rate by problem.
        trained: Rate by problem of the other run.
        names: Names of both.
        num_samples: Samples per problem of both.
    """
    shared = [id_ for id_ in baseline if id_ in trained]
    before = np.array([baseline[id_] for id_ in shared])
    after = np.array([trained[id_] for id_ in shared])
    figure = new_figure(*PANEL)
    axes = figure.add_subplot(aspect="equal", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    means = np.linspace(0.0, 1.0, 201)
    half = _noise(means, num_samples) / 2
    axes.fill(
        np.concatenate([means - half, (means + half)[::-1]]).clip(0, 1),
        np.concatenate([means + half, (means - half)[::-1]]).clip(0, 1),
        color="#e8e8e8", linewidth=0,
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    is_noise = np.abs(after - before) <= _noise((before + after) / 2, num_samples)
    kinds = (
        ("gained", ~is_noise & (after > before), 2, "^"),
        ("lost", ~is_noise & (after < before), 1, "v"),
        ("within noise", is_noise, 6, "o"),
    )
    for label, chosen, colour, marker in kinds:
        axes.scatter(
            before[chosen], after[chosen], s=26, color=COLOURS[colour], marker=marker, alpha=0.6, linewidth=0,
            label=f"{label}: {int(chosen.sum())}",
        )  # fmt: skip
    dress(axes, f"solve rate, {names[0]}", f"solve rate, {names[1]}")
    axes.legend(frameon=False, handletextpad=0.2, fontsize=10.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _noise(
    means: np.ndarray[Any, np.dtype[np.float64]], num_samples: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Differences that two samples of one rate exceed once in 20 times: the pooled test of two proportions."""
    return Z_95 * np.sqrt(means * (1 - means) * sum(1 / n for n in num_samples))


def to_svg(figure: Figure) -> str:
    """Write the figure as an `<svg>` element, the same bytes for the same figure."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "maxk"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def look(place: int) -> tuple[str, str, str]:
    """Choose colour, marker and line style of the line at a place in the order.

    No two of the first 32 have the same colour and line style, nor the same colour and marker: a legend shows both.
    """
    turn = place // len(COLOURS)
    return COLOURS[place % len(COLOURS)], MARKERS[(place + turn) % len(MARKERS)], DASHES[turn % len(DASHES)]


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """Make an empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Label the axes, and draw a light grid and nothing else around the panel."""
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.tick_params(labelsize=10.5, color=GREY)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GREY)


def _set_ticks(axes: Axes, ks: Iterable[int]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(_ticks(sorted(ks))))


def _ticks(ks: Sequence[int]) -> list[int]:
    """Every k, unless they crowd: then those that keep a factor of 1.8 from their left neighbour."""
    ticks: list[int] = []
    for k in ks:
        if not ticks or k >= 1.8 * ticks[-1]:
            ticks.append(k)
    return ticks


def shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend for all panels below them, in as many columns as the width takes."""
    entries = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries.update(dict(zip(labels, handles, strict=True)))
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for num_columns in range(min(len(entries), MAX_COLUMNS), 0, -1):
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=num_columns,
            frameon=False,
            fontsize=10.5,
            handlelength=HANDLE,
        )
        if num_columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()
