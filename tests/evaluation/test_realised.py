"""Realised best-of-k in comparisons: read, tabulated and tested as max@k is."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from maxk_lightning.evaluation import markdown
from maxk_lightning.evaluation.comparison import compare_benchmarks
from maxk_lightning.evaluation.estimates import METRICS, curve_of
from maxk_lightning.evaluation.figures import look
from maxk_lightning.evaluation.plots import plots_of
from maxk_lightning.evaluation.realised import REALISED, Realised, read_realised, write_realised
from maxk_lightning.evaluation.runs import Run, selectors_of
from tests.support.builders import make_run, make_samples

REWARDS = {"a": [0.0, 1.0], "b": [1.0, 1.0], "c": [0.0, 0.0], "d": [0.5, 1.0]}
PUBLIC = {"base": {"a": [0.5, 0.0], "b": [1.0, 1.0], "c": [0.0, 0.0], "d": [0.75, 0.5]}}
PUBLIC["ours"] = {"a": [0.5, 1.0], "b": [1.0, 1.0], "c": [0.0, 0.0], "d": [0.75, 1.0]}


def _run(tmp_path: Path, name: str, selectors: tuple[str, ...] = ("public",)) -> Run:
    run = make_run(tmp_path / name, make_samples(REWARDS))
    values = PUBLIC[name]
    realised = Realised(curve=curve_of(np.array(list(values.values())), [1, 2]), problems=values)
    write_realised(dict.fromkeys(selectors, realised), tmp_path / name)
    return run


def test_what_was_written_is_read(tmp_path: Path) -> None:
    run = _run(tmp_path, "ours")
    assert [point.value for point in run.curve("realised:public")] == [pytest.approx(0.5625), pytest.approx(0.75)]
    assert run.curve("realised:agreement") == ()
    assert read_realised(tmp_path) == {}
    (tmp_path / REALISED).write_text('{"public": []}')
    with pytest.raises(ValueError, match=r"realised\.json: not what `evaluate --select` wrote"):
        read_realised(tmp_path)


def test_realised_curves_are_compared_where_all_runs_have_them(tmp_path: Path) -> None:
    runs = [_run(tmp_path, "base", ("public", "agreement")), _run(tmp_path, "ours")]
    (comparison,) = compare_benchmarks(runs)
    assert [table.title for table in comparison.tables] == [
        "bench, max@k",
        "bench, pass@k",
        "bench, best of k by public",
    ]
    tests = comparison.tests["realised:public", "ours"]
    assert [(test.k, test.num_gained, test.num_lost) for test in tests] == [(1, 0, 0), (2, 2, 0)]
    assert tests[1].difference == pytest.approx(0.375)  # (1 + .5) / 4
    assert any("best of 2 by public +0.375" in sentence for sentence in comparison.conclusions())
    text = markdown.to_markdown([comparison])
    assert "| bench, best of k by public | k = 1 | k = 2 |" in text
    assert "agreement" not in text
    assert "best of k by public" in markdown.tables_csv([comparison])
    assert "best of k by public" in markdown.tests_csv([comparison])


def test_realised_curves_are_drawn_dashed_below_max_at_k(tmp_path: Path) -> None:
    """Those of each run, also where the others have none, in its colour, with every interval."""
    runs = [_run(tmp_path, "base", ("public", "agreement")), _run(tmp_path, "ours")]
    assert selectors_of(runs) == ["public", "agreement"]
    (comparison,) = compare_benchmarks(runs)
    best, passed = [plot for plot in plots_of(comparison) if plot.name in METRICS]
    (axes,) = best.figure.axes
    drawn = [(line.get_color(), np.asarray(line.get_ydata()).tolist()) for line in axes.lines if line.is_dashed()]
    values = {run.name: [point.value for point in run.curve("realised:public")] for run in runs}
    colours = [look(place)[0] for place in range(2)]
    assert [line for line in drawn if line[1]] == [
        (colours[0], values["base"]),
        (colours[1], values["ours"]),
        (colours[0], values["base"]),
    ]
    ends = [
        (float(low), float(high))
        for lines in axes.collections
        if isinstance(lines, LineCollection)
        for (_, low), (_, high) in lines.get_segments()
    ]
    expected = [(point.low, point.high) for each in (*runs, runs[0]) for point in each.curve("realised:public")]
    assert ends == expected
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["base", "ours", "best of k by public", "best of k by agreement"]
    assert "Dashed" in best.caption
    assert "Dashed" not in passed.caption
    assert not any(line.is_dashed() for line in passed.figure.axes[0].lines)
    low, high = axes.get_ylim()
    assert all(low < each[0] <= each[1] < high for each in ends)


def test_runs_without_any_are_compared_as_before(tmp_path: Path) -> None:
    runs = [_run(tmp_path, "base"), make_run(tmp_path / "other", make_samples(REWARDS))]
    (comparison,) = compare_benchmarks(runs)
    assert [table.metric for table in comparison.tables] == ["max_at_k", "pass_at_k"]
    other = [plot for plot in plots_of(compare_benchmarks(runs[1:])[0]) if plot.name == "max_at_k"]
    assert not any(line.is_dashed() for line in other[0].figure.axes[0].lines)
