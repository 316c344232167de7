"""The figures of a comparison, each with a name for its files and a caption."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from maxk_lightning.evaluation.comparison import Comparison
from maxk_lightning.evaluation.estimates import METRICS
from maxk_lightning.evaluation.figures import curves, entropy_densities, label_of, solve_rates, to_svg
from maxk_lightning.evaluation.prediction import PREDICTED
from maxk_lightning.evaluation.runs import selectors_of

REALISED_CAPTION = (
    " Dashed, with intervals as thin lines: the reward of the one of k samples that is chosen without the hidden tests."
)
PREDICTED_CAPTION = " Dashed, in a hatched band: more samples than there are, predicted and not measured."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A figure of one benchmark."""

    name: str
    "Stem of the names of its files."
    caption: str
    "Caption."
    figure: Figure
    "The drawing."

    def save(self, directory: Path) -> None:
        """Write NAME.png and NAME.svg."""
        self.figure.savefig(directory / f"{self.name}.png")
        (directory / f"{self.name}.svg").write_text(to_svg(self.figure), encoding="utf-8")


def plots_of(comparison: Comparison, suffix: str = "") -> Iterator[Plot]:
    """Draw curves, entropies where the engine gave them, and a scatter per other run. Names end with `suffix`."""
    benchmark, selectors = comparison.benchmark, selectors_of(comparison.runs)
    for metric in METRICS:
        yield Plot(
            name=file_stem(f"{metric}{suffix}"),
            caption=f"{label_of(metric)} over the number of samples k on {benchmark}, with 95% bootstrap bands."
            f"{REALISED_CAPTION * (metric == 'max_at_k' and bool(selectors))}"
            f"{PREDICTED_CAPTION * any(run.curve(f'{PREDICTED}{metric}') for run in comparison.runs)}",
            figure=curves(comparison.runs, [metric], selectors),
        )
    counts = {run.name: run.entropy_counts for run in comparison.runs}
    if any(counts.values()):
        yield Plot(
            name=file_stem(f"entropy{suffix}"),
            caption="Density of the entropy of the distributions that tokens were drawn from (log scale).",
            figure=entropy_densities(counts),
        )
    for run in comparison.others:
        base = comparison.baseline
        sizes = (base.summary.num_samples, run.summary.num_samples)
        yield Plot(
            name=file_stem(f"solve_rates {run.name}{suffix}"),
            caption=f"Solve rate of each problem: above the line {run.name} is better than {base.name}. The grey band "
            "holds 95% of problems whose rate did not change: about one in 20 of those is counted as gained or lost.",
            figure=solve_rates(base.solve_rates, run.solve_rates, (base.name, run.name), sizes),
        )


def file_stem(text: str) -> str:
    """Make a name that every file system takes.

    >>> file_stem("curves a/b: c")
    'curves_a-b-_c'
    """
    return "".join("_" if c == " " else c if c.isalnum() or c in "._-" else "-" for c in text)
