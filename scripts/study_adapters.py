"""Trained adapters of a study, small enough to keep: their policies can be sampled again without training.

They are kept in bfloat16, and what the study evaluates is what it keeps.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from study_results import Job

from maxk_lightning.policy.adapter import CONFIG

WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"
BASE_KEY = "base_model_name_or_path"
UP = ".lora_B."


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is kept of a training beside its policy."""

    seconds: float
    "Wall clock of `fit`, since it was resumed if it was."
    curves: Mapping[str, Sequence[float]]
    "Training curves: TensorBoard tag -> value per rollout."


def adapter_path(results: Path, job: Job) -> Path:
    """Name the directory that keeps the adapter of a job's training."""
    return results / job.benchmark / "adapters" / job.training


def keep_adapter(exported: Path, kept: Path, base: str, training: Training) -> None:
    """Keep an adapter that `export --adapter true` wrote, in bfloat16; the directory appears whole or not at all.

    Args:
        exported: What was written.
        kept: The directory to create.
        base: Name of the base policy for others, in the place of a path on this machine.
        training: What else is kept.
    """
    unfinished = kept.with_name(f"{kept.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(exported / WEIGHTS).items()}
    save_file(weights, unfinished / WEIGHTS, metadata={"format": "pt"})
    _write_config(unfinished, _read_config(exported) | {BASE_KEY: base})
    (unfinished / TRAINING).write_text(json.dumps(asdict(training), separators=(",", ":")) + "\n", encoding="utf-8")
    shutil.rmtree(kept, ignore_errors=True)
    unfinished.rename(kept)


def read_training(kept: Path) -> Training:
    """Read what is kept beside an adapter."""
    return Training(**json.loads((kept / TRAINING).read_text(encoding="utf-8")))


def place_adapter(kept: Path, target: Path, base: str, share: float = 1.0) -> None:
    """Write a kept adapter for `--policy`, over a base on this machine.

    Args:
        kept: Directory of the kept adapter.
        target: The directory to write.
        base: The base policy here.
        share: How much of what training changed is left, W = W_base + share * B A: the weights are interpolated with
            those of the base (WiSE-FT, arXiv:2109.01903).
    """
    target.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.float() * (share if UP in name else 1.0) for name, weight in load_file(kept / WEIGHTS).items()
    }
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    _write_config(target, _read_config(kept) | {BASE_KEY: base})


def _read_config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    return config


def _write_config(directory: Path, config: Mapping[str, Any]) -> None:
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
