"""How well 32 samples predict max@256 and pass@256: all kept test runs of the studies, with their counts of rewards.

    python scripts/prediction_study.py              # minutes; docs/results/prediction.json and the tables of the page
    python scripts/prediction_study.py --report     # the tables of docs/prediction.md from what is kept

32 of a problem's samples are drawn without replacement, the same for all models. The truth is the unbiased estimate
from all of them. Then the replay of `evaluate --until_width`, for the runs of seed 1: rounds are taken from a random
order of the kept samples until the interval is as narrow as that of all samples, up to 5 %.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prediction_models import OTHERS, Rewards
from scipy.special import ndtri
from study_report import filled
from study_results import Result, markdown_table, read

from maxk_lightning.commands.evaluate.until_width import samples_per_round
from maxk_lightning.evaluation.estimates import LEVEL, METRICS, Estimate, Metric, curve_of, estimates, ladder
from maxk_lightning.evaluation.figures import label_of
from maxk_lightning.evaluation.prediction import Prediction, band_width, predict, predictable_ks
from maxk_lightning.seeds import derive_seed

RESULTS = Path("docs/results")
KEPT = RESULTS / "prediction.json"
PAGE = Path("docs/prediction.md")
NUM_DRAWN = 32
GOAL = 0.03
SLACK = 1.05
"Width at which the replay stops, as a multiple of the width of all samples."
LABELS = {
    "beta_binomial": "beta-binomial, posterior (kept)",
    "of_fitted": "beta-binomial, fitted distribution alone",
    "zero_inflated": "zero-inflated beta-binomial, posterior",
    "dirichlet": "Dirichlet-multinomial, posterior",
    "flat": "estimate at k = 32, held flat",
    "plug_in": "plug-in 1 - (1 - p)^k",
}


def main() -> None:
    """Measure, keep, and fill in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write the tables only")
    if not parser.parse_args().report:
        started = time.process_time()
        rows = [row for path in run_files() for row in predictions_of(path)]
        replays = [replayed(path) for path in run_files() if is_replayed(path)]
        kept = {"predictions": rows, "replays": replays, "cpu_seconds": round(time.process_time() - started)}
        lines = [json.dumps(row) for row in rows], [json.dumps(row) for row in replays]
        text = '{{"cpu_seconds": {},\n"predictions": [\n{}\n],\n"replays": [\n{}\n]}}\n'
        KEPT.write_text(text.format(kept["cpu_seconds"], *(",\n".join(part) for part in lines)))
    PAGE.write_text(filled(PAGE.read_text(), blocks(json.loads(KEPT.read_text()))))


def run_files() -> list[Path]:
    """All kept results on test problems that have more than the drawn samples.

    Policies that are told k are left out: no one set of samples has their values at all k.
    """
    results = {path: read(path) for path in sorted(RESULTS.glob("study*/*/test/*.json"))}
    return [path for path, result in results.items() if result.job.num_samples > NUM_DRAWN and not result.told]


def is_replayed(path: Path) -> bool:
    """Seed 1 of every arm of 256 samples."""
    job = read(path).job
    return job.seed == 1 and job.num_samples == 256


def predictions_of(path: Path) -> list[dict[str, Any]]:
    """A row per metric: the truth, what each model says, and whether its interval holds the truth."""
    result = read(path)
    rewards = shuffled(result, path)
    drawn = {id_: group[:NUM_DRAWN] for id_, group in rewards.items()}
    return [
        {"run": str(path.relative_to(RESULTS)), "benchmark": result.job.benchmark, "arm": result.job.arm,
         "metric": metric, **predicted(drawn, result, metric)}
        for metric in METRICS
    ]  # fmt: skip


def shuffled(result: Result, path: Path) -> Rewards:
    """The samples of every problem in a random order, so that the first so many are drawn without replacement."""
    rng = np.random.default_rng(derive_seed(0, "prediction", str(path.relative_to(RESULTS))))
    return {id_: rng.permutation(group).tolist() for id_, group in result.rewards_of.items()}


def predicted(drawn: Rewards, result: Result, metric: Metric) -> dict[str, Any]:
    """Truth, errors and intervals of one metric."""
    ks = predictable_ks(NUM_DRAWN, result.job.num_samples)
    truth_K = result.values_PK(metric).mean(axis=0)[[result.ks.index(k) for k in ks]]
    prediction = predict(drawn, metric, ks)
    points = prediction.curve()
    row: dict[str, Any] = {
        "k": ks[-1],
        "truth": round(float(truth_K[-1]), 4),
        "errors_by_k": {str(p.k): round(p.value - float(t), 4) for p, t in zip(points, truth_K, strict=True)},
        "interval": [round(float(end), 4) for end in interval_of(points[-1])],
        "same_problems_half_width": round(same_problems_half_width(prediction), 4),
        "values": {"beta_binomial": round(points[-1].value, 4)},
        "intervals": {},
    }
    for name, model in OTHERS.items():
        values_P1 = model(drawn, metric, ks[-1])[:, None]
        row["values"][name] = round(float(values_P1.mean()), 4)
        if name in ("flat", "plug_in"):
            row["intervals"][name] = [round(end, 4) for end in interval_of(curve_of(values_P1, ks[-1:])[0])]
    return row


def interval_of(point: Estimate) -> tuple[float, float]:
    """Both ends."""
    assert point.low is not None
    assert point.high is not None
    return point.low, point.high


def same_problems_half_width(prediction: Prediction) -> float:
    """Half of the interval of what all samples of these very problems will show.

    Their variation is no part of it: the error of the fit, and the chance that the best of k comes, which for a value v
    within 0 and 1 has variance v (1 - v) at most.
    """
    values_P = prediction.values_PK[:, -1].clip(0.0, 1.0)
    variance = (values_P * (1 - values_P)).sum() / len(values_P) ** 2 + prediction.refits_RK[:, -1].var()
    return float(ndtri((1 + LEVEL) / 2) * np.sqrt(variance))


def replayed(path: Path) -> dict[str, Any]:
    """Stop as `evaluate --until_width` would, at 5 % above the width that all samples reach."""
    result = read(path)
    rewards = shuffled(result, path)
    num_samples = result.job.num_samples
    full = band_width(rewards, num_samples)
    size = samples_per_round(num_samples)
    width, drawn, num_drawn = full, rewards, num_samples
    for num_drawn in range(size, num_samples + 1, size):
        drawn = {id_: group[:num_drawn] for id_, group in rewards.items()}
        width = band_width(drawn, num_samples)
        if width < SLACK * full:
            break
    truth = estimates(rewards, "max_at_k")[-1]
    last = predict(drawn, "max_at_k", [num_samples]).curve()[0] if num_drawn < num_samples else truth
    low, high = interval_of(last)
    return {
        "run": str(path.relative_to(RESULTS)), "num_samples": num_samples, "num_drawn": num_drawn,
        "width": round(width, 4), "full_width": round(full, 4),
        "width_at_last_k": round(high - low, 4),
        "full_width_at_last_k": round(float(np.subtract(*interval_of(truth)[::-1])), 4),
        "error": round(last.value - truth.value, 4), "is_covered": bool(low <= truth.value <= high),
    }  # fmt: skip


def blocks(kept: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page."""
    rows = kept["predictions"]
    return {
        "models": models_table(rows),
        "by k": by_k_table(rows),
        "arms": arms_table(rows),
        "replays": replays_table(kept["replays"]),
    }


def models_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every model over all runs, by metric."""
    heads = ["model", *(f"{label_of(m)}: {what}" for m in METRICS for what in ("mean error", "largest", "within .03"))]
    heads += [f"covered, {label_of(metric)}" for metric in METRICS]
    lines = []
    for name, label in LABELS.items():
        cells, covered = [label], []
        for metric in METRICS:
            of_metric = [row for row in rows if row["metric"] == metric]
            errors = np.array([row["values"][name] - row["truth"] for row in of_metric])
            cells += [f"{errors.mean():+.3f}, {abs(errors).mean():.3f}", f"{abs(errors).max():.3f}"]
            cells += [f"{(abs(errors) <= GOAL).mean():.0%}"]
            intervals = [
                row["interval"] if name == "beta_binomial" else row["intervals"].get(name) for row in of_metric
            ]
            covered.append(coverage(of_metric, intervals))
        lines.append([*cells, *covered])
    return markdown_table(heads, lines)


def coverage(rows: Sequence[Mapping[str, Any]], intervals: Sequence[Sequence[float] | None]) -> str:
    """Share of the intervals that hold the truth; a hyphen where a model has none."""
    if None in intervals:
        return "-"
    pairs = zip(rows, intervals, strict=True)
    is_covered = [interval[0] <= row["truth"] <= interval[1] for row, interval in pairs if interval is not None]
    return f"{np.mean(is_covered):.0%}"


def by_k_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The kept model at every k beyond the samples."""
    lines = []
    for metric in METRICS:
        for k in ladder(256)[ladder(256).index(2 * NUM_DRAWN) :]:
            errors = [
                row["errors_by_k"][str(k)] for row in rows if row["metric"] == metric and str(k) in row["errors_by_k"]
            ]
            sizes = np.abs(errors)
            lines.append(
                [label_of(metric).replace("@k", f"@{k}"), str(len(errors)), f"{np.mean(errors):+.3f}",
                 f"{sizes.mean():.3f}", f"{sizes.max():.3f}", f"{(sizes <= GOAL).mean():.0%}"]
            )  # fmt: skip
    return markdown_table(["from 32 samples", "runs", "bias", "mean size of error", "largest", "within .03"], lines)


def arms_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The kept model arm by arm."""
    by_arm: dict[tuple[str, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_arm[row["benchmark"], row["arm"], row["k"]].append(row)
    heads = ["arm", "runs", "k"]
    heads += [f"{label_of(m)}: {what}" for m in METRICS for what in ("mean", "largest", "covered", "same problems")]
    lines = [arm_cells("all", "", rows)]
    lines += [
        arm_cells(f"{benchmark}, {arm}", str(k), by_arm[benchmark, arm, k]) for benchmark, arm, k in sorted(by_arm)
    ]
    return markdown_table(heads, lines)


def arm_cells(label: str, k: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean error with its sign, largest size, and coverage by both intervals."""
    cells = [label, str(len({row["run"] for row in rows})), k]
    for metric in METRICS:
        of_metric = [row for row in rows if row["metric"] == metric]
        errors = np.array([row["values"]["beta_binomial"] - row["truth"] for row in of_metric])
        half_widths = np.array([row["same_problems_half_width"] for row in of_metric])
        cells += [f"{errors.mean():+.3f}", f"{abs(errors).max():.3f}"]
        cells += [coverage(of_metric, [row["interval"] for row in of_metric])]
        cells += [f"{(abs(errors) <= half_widths).mean():.0%}"]
    return cells


def replays_table(replays: Sequence[Mapping[str, Any]]) -> str:
    """What stopping early saved and what it cost."""
    drawn = np.array([replay["num_drawn"] for replay in replays])
    errors = np.array([replay["error"] for replay in replays])
    ratio = np.mean([replay["width"] / replay["full_width"] for replay in replays])
    last = np.mean([replay["width_at_last_k"] / replay["full_width_at_last_k"] for replay in replays])
    is_covered = [replay["is_covered"] for replay in replays]
    sizes = abs(errors)
    values = {
        "runs": f"{len(replays)}",
        "samples per problem when it stopped, of 256: median": f"{np.median(drawn):.0f}",
        "mean": f"{drawn.mean():.0f}",
        "most": f"{drawn.max()}",
        "runs that stopped at a quarter of the samples or before": f"{(drawn <= 64).mean():.0%}",
        "widest interval, against that of all samples": f"{ratio:.3f}",
        "interval of max@256, against that of all samples": f"{last:.3f}",
        "error of the predicted max@256: mean": f"{errors.mean():+.3f}",
        "mean size": f"{sizes.mean():.3f}",
        "largest": f"{sizes.max():.3f}",
        "predicted interval holds max@256 of all samples": f"{np.mean(is_covered):.0%}",
    }
    rows = list(values.items())
    return markdown_table(["", "value"], rows)


if __name__ == "__main__":
    main()
