"""What all bench scripts share: the facts of the machine, the table on the screen and the JSON report."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def machine() -> dict[str, Any]:
    """Describe the machine; a script that has not imported torch says nothing about it."""
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }
    if torch := sys.modules.get("torch"):
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        facts |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": gpu}
    return facts


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json OUT`."""
    parser.add_argument("--json", type=Path, default=None, help="write machine, rows and ratios there")


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text; the first column is left-aligned, numbers are right-aligned."""
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_ratios(ratios: Mapping[str, float], digits: int = 2) -> None:
    """Print one ratio per line."""
    for name, value in ratios.items():
        print(f"{name}: {value:.{digits}f}")


def write_json(path: Path | None, rows: Sequence[Any], ratios: Mapping[str, float], **more: Any) -> None:
    """Write the report, if a file was named."""
    if path is not None:
        report = {"machine": machine(), **more, "rows": rows, "ratios": ratios}
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
