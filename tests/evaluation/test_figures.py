"""Figures show the numbers they were given, and every line looks different."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from maxk_lightning.evaluation import curves, published
from maxk_lightning.evaluation.estimates import Estimate
from maxk_lightning.evaluation.figures import (
    curve_figure,
    difference_curves,
    entropy_densities,
    look,
    solve_rates,
    to_svg,
)
from maxk_lightning.evaluation.runs import NamedCurves
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


def test_predictions_go_on_dashed_from_the_last_measured_point() -> None:
    further = [Estimate(k=4, value=0.5, low=0.3, high=0.8), Estimate(k=8, value=0.6, low=0.35, high=0.9)]
    with_it = NamedCurves(name="with", benchmark="b", curves={"max_at_k": POINTS, "predicted:max_at_k": further})
    without = NamedCurves(name="without", benchmark="b", curves={"max_at_k": POINTS})
    figure = curves([without, with_it], ["max_at_k"])
    (axes,) = figure.axes
    (dashed,) = [line for line in axes.lines if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert [(float(x), float(y)) for x, y in dashed.get_xydata()] == [(2, 0.4), (4, 0.5), (8, 0.6)]  # type: ignore[union-attr]
    assert dashed.get_linestyle() == "--"
    measured = next(line for line in axes.lines if line.get_label() == "with")
    assert (dashed.get_color(), dashed.get_marker()) == (measured.get_color(), "None")
    assert [float(x) for x in measured.get_xdata()] == [1, 2]  # type: ignore[union-attr]
    assert [band.get_hatch() for band in axes.collections] == [None, None, "///"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    assert axes.get_ylim()[1] > 0.9
    (legend,) = figure.legends
    assert "predicted, not measured" in [text.get_text() for text in legend.get_texts()]
    assert "predicted, not measured" not in lines(curves([without], ["max_at_k"]).axes[0])


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


def test_the_scatter_tells_gains_and_losses_from_noise() -> None:
    before = {"x": 0.1, "y": 0.5, "z": 0.5, "never": 0.0, "gone": 1.0}
    after = {"x": 0.4, "y": 0.2, "z": 0.6, "never": 0.0}
    # 100 samples each: rates around .5 differ by chance by up to 1.96 * sqrt(.25 * 2 / 100) = .139.
    figure = solve_rates(before, after, ("base", "new"), (100, 100))
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["gained: 1", "lost: 1", "within noise: 2"]
    assert figure.axes[0].get_ylabel() == "solve rate, new"
    figure = solve_rates(before, after, ("base", "new"), (4, 4))
    assert figure.axes[0].get_legend_handles_labels()[1] == ["gained: 0", "lost: 0", "within noise: 4"]


def test_the_noise_band_is_left_once_in_20_times() -> None:
    generator = np.random.default_rng(0)
    before, after = (generator.binomial(256, 0.3, 4000) / 256 for _ in range(2))
    ids = list(map(str, range(4000)))
    rates = [dict(zip(ids, values.tolist(), strict=True)) for values in (before, after)]
    labels = solve_rates(rates[0], rates[1], ("a", "b"), (256, 256)).axes[0].get_legend_handles_labels()[1]
    num_within = int(labels[2].split(": ")[1])
    assert 0.94 < num_within / 4000 < 0.96


def test_a_legend_is_no_wider_than_its_figure() -> None:
    points = {"max_at_k": POINTS, "pass_at_k": POINTS}
    named = [NamedCurves(name=f"a method of many words {i}", benchmark="b", curves=points) for i in range(5)]  # type: ignore[arg-type]
    figure = curves(named)
    (legend,) = figure.legends
    width = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width
    assert width <= figure.bbox.width
    assert len(legend.get_texts()) == 5
    assert len({(h.get_color(), h.get_marker()) for h in legend.get_lines()}) == 5  # type: ignore[arg-type]


def test_differences_keep_the_looks_of_their_curves() -> None:
    names = ["base", "a", "b"]
    figure = difference_curves({"base": {"a": POINTS, "b": POINTS}, "a": {"b": POINTS}}, names, "max@k")
    first, second = figure.axes
    assert [list(lines(axes))[1:] for axes in (first, second)] == [["a", "b"], ["b"]]
    assert second.lines[1].get_color() == look(2)[0]
    assert second.get_title(loc="left") == "against a"


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
