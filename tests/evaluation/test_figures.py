"""Figures show the numbers they were given, and every line looks different."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from maxk_lightning.evaluation import curves, published
from maxk_lightning.evaluation.estimates import Estimate
from maxk_lightning.evaluation.figures import curve_figure, entropy_densities, look, solve_rates, to_svg
from maxk_lightning.evaluation.samples import ENTROPY_BIN

POINTS = [Estimate(k=1, value=0.2, low=0.1, high=0.3), Estimate(k=2, value=0.4, low=0.25, high=0.5)]


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines}  # type: ignore[union-attr]


def test_curves_hold_every_published_point_in_one_panel_per_benchmark_and_metric() -> None:
    runs = [run for run in published() if run.benchmark in ("MBPP", "LiveBench")]
    panels = curves(runs).axes
    assert len(panels) == 4
    for axes, (benchmark, metric) in zip(
        panels, [("LiveBench", "max_at_k"), ("LiveBench", "pass_at_k"), ("MBPP", "max_at_k"), ("MBPP", "pass_at_k")],
        strict=True,
    ):  # fmt: skip
        assert axes.get_title(loc="left") == benchmark
        shown = lines(axes)
        for run in runs:
            if run.benchmark == benchmark:
                assert shown[run.name] == [(point.k, point.value) for point in run.curve(metric)]  # type: ignore[arg-type]


def test_bands_are_the_intervals_on_a_log2_axis() -> None:
    (axes,) = curve_figure({"a": POINTS, "no band": [Estimate(k=1, value=0.3)]}, "max@k", "title").axes
    (band,) = axes.collections
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(1, 0.1), (1, 0.3), (2, 0.25), (2, 0.5)}
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]


def test_densities_integrate_to_one() -> None:
    figure = entropy_densities({"a": {0: 30, 7: 10}, "b": {3: 1}, "silent": {}})
    stairs = figure.axes[0].patches
    assert len(stairs) == 2
    for patch in stairs:
        values, edges, _ = patch.get_data()  # type: ignore[attr-defined]
        assert np.nansum(values * np.diff(edges)) == pytest.approx(1.0)
        assert np.diff(edges) == pytest.approx(ENTROPY_BIN)


def test_the_scatter_counts_gains_and_losses_of_shared_problems() -> None:
    figure = solve_rates({"x": 0.1, "y": 0.5, "z": 0.3, "gone": 1.0}, {"x": 0.4, "y": 0.2, "z": 0.3}, ("base", "new"))
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["gained: 1", "lost: 1", "equal: 1"]
    assert figure.axes[0].get_ylabel() == "solve rate, new"


def test_the_first_32_lines_all_look_different() -> None:
    looks = [look(place) for place in range(32)]
    assert len({(colour, dash) for colour, _, dash in looks}) == 32
    assert len({(colour, marker) for colour, marker, _ in looks}) == 32  # what a legend shows at a glance


def test_panels_of_a_benchmark_have_one_range() -> None:
    runs = [run for run in published() if run.benchmark == "MBPP"]
    both = curves(runs).axes
    assert both[0].get_ylim() == both[1].get_ylim()
    assert curves(runs, ["pass_at_k"]).axes[0].get_ylim() == both[0].get_ylim()


def test_drawings_are_reproducible_and_stand_alone() -> None:
    first, second = (to_svg(curve_figure({"a": POINTS}, "max@k", "title")) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        curves([])
