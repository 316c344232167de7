"""Both catalogues on every backend that works here, as root and ordinary user; and the proof that they can fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

DRIVER = ROOT / "tests" / "support" / "catalogue.py"
ORDINARY_UID = 12345
SYSTEM_PYTHON = "/usr/bin/python3"


def run_catalogue(python: str, backend: str, uid: int | None, *options: str) -> dict[str, Any]:
    identity: dict[str, Any] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    done = subprocess.run(
        [python, str(DRIVER), "--backend", backend, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        **identity,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def require(backend: str, user: str) -> tuple[str, int | None]:
    """Interpreter and user to run as, or skip with the reason."""
    if backend == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if user == "me":
        return sys.executable, None
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"no {SYSTEM_PYTHON} that every user can read")
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if version.stdout.strip() != b"True":
        pytest.skip(f"{SYSTEM_PYTHON} is older than 3.11")
    return SYSTEM_PYTHON, ORDINARY_UID if user == "ordinary" else None


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["plain", "bwrap"])
@pytest.mark.parametrize("user", ["me", "root with a readable interpreter", "ordinary"])
def test_every_verdict_is_right_and_nothing_is_broken(backend: str, user: str) -> None:
    python, uid = require(backend, user)
    report = run_catalogue(python, backend, uid)
    assert report["num_programs"] > 80
    del report["num_programs"]
    assert report == {"wrong": [], "num_left_over": 0, "num_after_close": 0, "num_visits": 0}


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["landlock", "seccomp"])
def test_catalogue_notices_a_missing_layer(layer: str) -> None:
    python, uid = require("plain", "ordinary")
    report = run_catalogue(python, "plain", uid, "--without", layer)
    assert report["wrong"]
