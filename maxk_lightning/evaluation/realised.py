"""realised.json: what is realised of max@k when one of k samples must be chosen without the hidden tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from maxk_lightning.evaluation.estimates import Estimate

REALISED = "realised.json"
"Its name in an output of `evaluate`."
PREFIX = "realised:"
"Metrics `realised:SELECTOR` are compared as max@k and pass@k are."


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """Realised best-of-k of one selector."""

    curve: Sequence[Estimate]
    "Means over problems, with intervals."
    problems: Mapping[str, Sequence[float | None]]
    "Problem -> value at every k of the curve; None: it has fewer samples."


def write_realised(curves: Mapping[str, Realised], directory: Path) -> None:
    """Write the curves by name of the selector; the file appears whole or not at all."""
    record = {name: asdict(each) for name, each in curves.items()}
    part = directory / f"{REALISED}.part"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(directory / REALISED)


def read_realised(directory: Path) -> dict[str, Realised]:
    """Read the curves; none where there is no file.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    path = directory / REALISED
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Realised(curve=[Estimate(**point) for point in each["curve"]], problems=each["problems"])
            for name, each in record.items()
        }
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not what `evaluate --select` wrote ({error!r})") from error
