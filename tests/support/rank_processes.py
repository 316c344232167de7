"""Ranks as processes of their own, which find each other through a file."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

NUM_RANKS = 2


@dataclass(frozen=True)
class End:
    """How a rank ended."""

    returncode: int
    out: str
    err: str


def run_ranks(script: str, store: Path, arguments: Sequence[str] = (), timeout_s: float = 500.0) -> list[End]:
    """Run `tests/support/SCRIPT RANK STORE ARGUMENTS...` for two ranks at the same time."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / script), str(rank), str(store), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        told = [rank.communicate(timeout=timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [End(rank.returncode, out, err) for rank, (out, err) in zip(ranks, told, strict=True)]
