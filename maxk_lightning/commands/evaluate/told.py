"""`evaluate --told_k`: a policy that is told how many tries there will be, asked for several numbers of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from maxk_lightning.commands.evaluate.summary_table import print_curves
from maxk_lightning.evaluation import curves
from maxk_lightning.evaluation.estimates import METRICS, Estimate, Metric, ladder
from maxk_lightning.evaluation.runs import NamedCurves
from maxk_lightning.evaluation.summary import Summary

SAME = "same"
"Tell the k that is reported: 1, 2, 4, ..., num_samples, each with samples of its own."
TOLD = "told-"
"Begins the name of the directory of the samples that were told one k."


def parse_told_ks(text: str, num_samples: int) -> list[int]:
    """Numbers of tries to tell, ascending.

    >>> parse_told_ks("same", 4), parse_told_ks("128,1", 4)
    ([1, 2, 4], [1, 128])

    Raises:
        ValueError: it is neither `same` nor a list of different positive whole numbers.
    """
    if text == SAME:
        return ladder(num_samples)
    parts = text.strip("[]").split(",")
    ks = [int(part) for part in parts if part.strip().isdecimal()]
    if len(ks) < len(parts) or len(set(ks)) < len(ks) or min(ks) < 1:
        raise ValueError(f"--told_k is {text!r}, must be `{SAME}` or different numbers of tries, such as 1,8,128")
    return sorted(ks)


def write_told(summaries: Mapping[int, Summary], out: Path, name: str, console: Console) -> None:
    """Join the curves where each k was told itself: print them, and write `told.json` and `curves.png`.

    Args:
        summaries: Told k -> summary of the samples that were told it. A k above their number has no point.
        out: Directory.
        name: Of the policy.
        console: Where to print.
    """
    points: dict[Metric, list[Estimate]] = {metric: [] for metric in METRICS}
    for told_k, summary in sorted(summaries.items()):
        for metric in METRICS:
            points[metric] += [point for point in getattr(summary, metric) if point.k == told_k]
    if not points["max_at_k"]:
        return
    told = NamedCurves(name=name, benchmark=next(iter(summaries.values())).benchmark, curves=points)
    console.print(f"{name} on {told.benchmark}, told the k of each row", markup=False, soft_wrap=True)
    print_curves(points["max_at_k"], points["pass_at_k"], console)
    text = json.dumps({metric: [asdict(point) for point in points[metric]] for metric in METRICS}, indent=1)
    (out / "told.json").write_text(text + "\n", encoding="utf-8")
    curves([told]).savefig(out / "curves.png")
    console.print(f"wrote {out}/told.json and curves.png", soft_wrap=True)
