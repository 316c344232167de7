"""What a sampling temperature of its own for every k is worth: chosen on half of the problems, measured on the others.

Shapes: T temperatures, P problems, S seeds, K values of k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from study_comparisons import Comparison, pairs_against
from study_results import Result, StudyPlan, by_problem_and_seed, controls_of, markdown_table, path_of, read

from maxk_lightning.evaluation.bootstrap import Floats
from maxk_lightning.evaluation.crossed import crossed_test
from maxk_lightning.evaluation.figures import PANEL, dress, look, new_figure, shared_legend

TRAINED_AT = 1.0
"Temperature of the samples that training learns from, and of all tables that do not say otherwise."


class Row(Protocol):
    """An arm with its seeds."""

    name: str
    results: Sequence[Result]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempered:
    """An arm whose samples were drawn at several temperatures."""

    name: str
    "Label of the arm."
    at: Mapping[float, Sequence[Result]]
    "Temperature -> results, one per seed, the same seeds for all."

    @property
    def ks(self) -> list[int]:
        """List the k that all temperatures have samples for."""
        return sorted(set[int].intersection(*(set(runs[0].ks) for runs in self.at.values())))

    def max_at_k_TPS(self, k: int) -> Floats:
        """Estimate max@k of every problem and seed, temperatures in the order of `at`."""
        return np.stack([by_problem_and_seed(runs, k) for runs in self.at.values()])

    def chosen(self, k: int) -> tuple[Floats, list[float]]:
        """Estimate max@k [P, S] at the temperature that is best on the other half of the problems.

        Halves are every second problem. Returns the temperatures of both, too.
        """
        values_TPS = self.max_at_k_TPS(k)
        chosen_PS = np.empty(values_TPS.shape[1:])
        temperatures = []
        for half in (0, 1):
            best = int(values_TPS[:, 1 - half :: 2].mean(axis=(1, 2)).argmax())
            chosen_PS[half::2] = values_TPS[best, half::2]
            temperatures.append(list(self.at)[best])
        return chosen_PS, temperatures


def tempered(plan: StudyPlan, results: Path, row: Row) -> Tempered | None:
    """Collect what is kept of an arm at all temperatures of the plan; None: there are none, or some are missing."""
    at: dict[float, list[Result]] = {}
    for result in row.results:
        controls = controls_of(plan, result.job)
        paths = {job.temperature: path_of(results, job) for job in controls if job.temperature is not None}
        if not all(path.is_file() for path in paths.values()):
            return None
        if paths:
            at.setdefault(TRAINED_AT, []).append(result)
        for temperature, path in paths.items():
            at.setdefault(temperature, []).append(read(path))
    return Tempered(name=row.name, at=dict(sorted(at.items()))) if at else None


def temperature_table(arms: Sequence[Tempered]) -> str:
    """Print max@k at temperature 1 and at the one that the other half of the problems chooses for each k."""
    lines = []
    for arm in arms:
        plain = [f"{by_problem_and_seed(arm.at[TRAINED_AT], k).mean():.3f}" for k in arm.ks]
        lines.append([arm.name, f"{TRAINED_AT:g}", *plain])
        cells = []
        for k in arm.ks:
            values_PS, temperatures = arm.chosen(k)
            cells.append(f"{values_PS.mean():.3f} ({', '.join(f'{t:g}' for t in dict.fromkeys(temperatures))})")
        lines.append([arm.name, "chosen for each k", *cells])
    return markdown_table(["policy", "temperature", *(f"max@{k}" for k in arms[0].ks)], lines)


def temperature_comparisons(
    arms: Mapping[str, Tempered], against: Sequence[str], ks: Sequence[int]
) -> list[Comparison]:
    """Test every arm against others, both at the temperatures that the other half of the problems chooses for each k.

    No pair comes twice.
    """
    return [
        Comparison(arm=arm, against=other, k=k, test=crossed_test(arms[arm].chosen(k)[0] - arms[other].chosen(k)[0]))
        for arm, other in pairs_against(list(arms), against)
        if arm != other and other in arms
        for k in ks
    ]


def temperature_figure(arms: Sequence[Tempered], ks: Sequence[int]) -> Figure:
    """max@1 against max@k, a panel for each k above 1, a line per arm, a point per temperature."""
    ks = [k for k in ks if k > 1]
    figure = new_figure(PANEL[0] * 1.2 * len(ks), PANEL[1] * 1.2)
    grid = list(figure.subplots(1, len(ks), squeeze=False).flat)
    for axes, k in zip(grid, ks, strict=True):
        axes.margins(0.08, 0.1)
        for place, arm in enumerate(arms):
            colour, marker, dash = look(place)
            first, last = ([float(v) for v in arm.max_at_k_TPS(each).mean(axis=(1, 2))] for each in (1, k))
            axes.plot(first, last, dash, color=colour, marker=marker, markersize=5, linewidth=2, label=arm.name)
            for x, y, temperature in zip(first, last, arm.at, strict=True):
                below = place % 2  # neighbours are labelled on different sides
                axes.annotate(
                    f"{temperature:g}",
                    (x, y),
                    xytext=(-9, -13) if below else (4, 4),
                    textcoords="offset points",
                    fontsize=8.5,
                    color=colour,
                )
        dress(axes, "max@1 (at the points: temperature)", f"max@{k}")
    shared_legend(figure, grid)
    return figure
