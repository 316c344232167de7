"""Published problem sets through sources and reward: their authors' solutions pass, programs that do nothing do not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

SHARED = Path(os.environ.get("MAXK_SHARED", ROOT.parent / "shared")) / "data"
KEPT = {
    "HumanEval+": (164, 164),
    "MBPP+": (378, 378),
    "MBPP full, `function`": (974, 970),
    "MBPP sanitized, `function`": (427, 427),
    "MBPP sanitized, `stdin`": (427, 369),
    "MBPP sanitized, `stdin`, `tokens_float`": (427, 369),
    "MBPP full, `repr`": (974, 968),
}
SETS_OF_FUNCTIONS = ("HumanEval+", "MBPP+", "MBPP full, `function`", "MBPP sanitized, `function`", "MBPP full, `repr`")

pytestmark = [
    pytest.mark.published,
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published problem sets are not at {SHARED}"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The script's counts on two tests of some problems of every set."""
    out = tmp_path_factory.mktemp("published") / "counts.json"
    options = ["--max_tests", "2", "--max_problems", "20", "--json", str(out)]
    command = [sys.executable, str(ROOT / "scripts" / "check_published.py"), str(SHARED), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert out.exists(), done.stderr
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]}


def test_every_finding_has_a_reason(rows: dict[str, Any]) -> None:
    findings = [finding for row in rows.values() for finding in row["findings"]]
    assert [finding for finding in findings if finding["reason"] == "UNEXPLAINED"] == []


def test_no_problem_is_lost(rows: dict[str, Any]) -> None:
    kept = {name: (row["rows"], row["kept"]) for name, row in rows.items() if name in KEPT}
    assert kept == {name: counts for name, counts in KEPT.items() if name in rows}
    assert kept, "none of the sets is there"


def test_published_solutions_pass_and_empty_programs_do_not(rows: dict[str, Any]) -> None:
    for name in set(SETS_OF_FUNCTIONS) & rows.keys():
        passed, tried = rows[name]["canonical"]
        assert passed == tried > 0, name
    assert all(row["wrong"]["empty"][0] == 0 for row in rows.values())


def test_recorded_verdicts_of_apps_agree(rows: dict[str, Any]) -> None:
    if "APPS" not in rows:
        pytest.skip(f"APPS is not at {SHARED}")
    agreed, compared = rows["APPS"]["agreement"]
    assert agreed == compared > 0
