"""What a run is: the policy that was sampled, how it was sampled, and how it was trained as far as that is known."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TRAINING = "maxk_training.json"
"File in an exported policy directory."
ORIGIN_HEADINGS = (
    "run", "policy", "started from", "objective", "optimizer", "steps", "training seed", "temperature", "sampling seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a policy was trained."""

    started_from: str
    "Policy before training."
    steps: int
    "Number of optimizer steps."
    objective: str | None = None
    "Objective with its arguments; None here and below: unknown."
    optimizer: str | None = None
    "Optimizer with its arguments."
    seed: int | None = None
    "`seed_everything` of the run."


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the samples of a run come from."""

    policy: str
    "Policy as it was given: a directory, a hub name, `builtin`, or a checkpoint."
    seed: int
    "Seed of the samples: runs with the same one are compared in pairs."
    temperature: float
    "Temperature of the samples."
    training: Training | None = None
    "None: unknown, or never trained here."


def write_training(training: Training, policy: Path) -> None:
    """Write how a policy was trained into its directory."""
    (policy / TRAINING).write_text(json.dumps(asdict(training), indent=1) + "\n", encoding="utf-8")


def read_training(policy: Path) -> Training | None:
    """Read what `write_training` wrote; None: nothing.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    path = policy / TRAINING
    if not path.is_file():
        return None
    try:
        return Training(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not what `export` wrote ({error})") from error


def origin_from(record: Mapping[str, Any] | None) -> Origin | None:
    """Read the form that `asdict` gives; None: the file is older than origins.

    Raises:
        TypeError: a field is missing, or unknown.
    """
    if record is None:
        return None
    training = record.get("training")
    return Origin(**{**record, "training": None if training is None else Training(**training)})


def origin_cells(name: str, origin: Origin | None) -> Sequence[str]:
    """Write a run under `ORIGIN_HEADINGS`; a hyphen marks what is not known."""
    training = origin and origin.training
    sampled = (origin.policy, f"{origin.temperature:g}", str(origin.seed)) if origin else (None, None, None)
    trained = (
        (training.started_from, training.objective, training.optimizer, str(training.steps), _text(training.seed))
        if training
        else (None,) * 5
    )
    return [name, *(_text(cell) for cell in (sampled[0], *trained, *sampled[1:]))]


def _text(value: object) -> str:
    return "-" if value is None else str(value)
