"""What is kept of a finished job of the study."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from study_programs import blind_counts, correct_programs
from study_results import Job, Result, Told
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maxk_lightning.commands.evaluate.told import TOLD
from maxk_lightning.evaluation import load
from maxk_lightning.evaluation.estimates import correct_counts
from maxk_lightning.evaluation.runs import Run
from maxk_lightning.evaluation.samples import Sample

CURVES = (
    "train/max_at_k/1",
    "train/max_at_k/8",
    "train/max_at_k/32",
    "train/entropy",
    "train/log_ratio_std",
    "train/effective_subsets_fraction",
    "train/engine_log_ratio",
    "train/clip_fraction",
    "train/kl",
    "rollout/age",
)
"Scalars that are kept of every run that has them."


def condense(job: Job, curves: Mapping[str, Sequence[float]], out: Path, seconds: dict[str, float]) -> Result:
    """Collect what is kept of a finished job, whose training had these curves and whose samples are under `out`."""
    runs = load(out)
    told = {int(run.path.name.removeprefix(TOLD)): run for run in runs if run.path.name.startswith(TOLD)}
    (evaluation,) = [told[max(told)]] if told else runs
    return Result(
        job=job,
        commit=commit(),
        machine=machine(),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        rewards=_counts(evaluation),
        entropy_bins={str(bin_): count for bin_, count in sorted(evaluation.entropy_counts.items())},
        summary=_summary(evaluation),
        curves={} if job.control else curves,
        formed=_formed(evaluation.samples),
        blind=blind_counts(evaluation.samples),
        realised={name: curve.problems for name, curve in evaluation.realised.items()},
        correct=_correct(evaluation),
        programs=correct_programs(evaluation.samples),
        told={str(k): _told(run) for k, run in sorted(told.items())},
    )


def _counts(evaluation: Run) -> dict[str, dict[str, int]]:
    return {
        problem: {f"{reward:.17g}": group.count(reward) for reward in sorted(set(group))}
        for problem, group in evaluation.rewards.items()
    }


def _correct(evaluation: Run) -> dict[str, list[int]]:
    """Fully correct samples of each behaviour; nothing where the reward tells none."""
    groups = evaluation.samples if evaluation.summary.distinct_at_k else {}
    return {problem: correct_counts(group) for problem, group in groups.items()}


def _told(evaluation: Run) -> Told:
    return Told(
        rewards=_counts(evaluation),
        summary=_summary(evaluation),
        correct=_correct(evaluation),
        programs=correct_programs(evaluation.samples),
    )


def _summary(evaluation: Run) -> dict[str, float]:
    summary = evaluation.summary
    return {
        **({} if summary.mean_entropy is None else {"mean_entropy": summary.mean_entropy}),
        "mean_tokens": summary.mean_tokens,
        "distinct_rate": summary.distinct_rate,
        "num_missing": summary.num_missing,
        "truncation_rate": summary.truncation_rate,
        "no_code_rate": summary.no_code_rate,
    }


def _formed(groups: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, int]]:
    """Count the rewards of samples that ended before the limit and hold a program; problems without any have none."""
    formed = {}
    for problem, group in groups.items():
        ended = (sample for sample in group if sample.finish_reason == "stop" and "no_code" not in sample.verdicts)
        counts = Counter(f"{sample.reward:.17g}" for sample in ended if sample.reward is not None)
        formed[problem] = dict(sorted(counts.items()))
    return formed


def training_curves(directory: Path) -> dict[str, list[float]]:
    """Read the kept scalars of a run; those logged at every optimizer step as means over a rollout.

    A run that was resumed wrote several files; of a step logged twice the later value counts.
    """
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    present = [tag for tag in CURVES if tag in events.Tags()["scalars"]]
    values = {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in present}
    num_rollouts = len(values["train/max_at_k/1"])
    curves = {}
    for tag, by_step in values.items():
        points = [by_step[step] for step in sorted(by_step)]
        per_rollout = len(points) // num_rollouts
        rollouts = [points[start : start + per_rollout] for start in range(0, len(points), per_rollout)]
        curves[tag] = [round(sum(points) / len(points), 6) for points in rollouts]
    return curves


def commit() -> str:
    """Name the commit of the code, `-dirty` where files were changed."""
    shown = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def machine() -> dict[str, str | int | None]:
    """Say what a result was measured on."""
    return {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__}


def _processor() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return names[0] if names else platform.machine()
