"""scripts/gpu_check.py without a GPU: it says so, goes on after every failure, and rehearses on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_check import FINDINGS, GPU_TESTS, Finding, Steps

from tests.support.paths import ROOT

SCRIPT = [sys.executable, str(ROOT / "scripts" / "gpu_check.py")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ran = subprocess.run([*SCRIPT, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "gpu_check: torch sees no GPU here; --cpu rehearses the same steps without one"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_finding_of_the_review_is_there_and_has_tests() -> None:
    names = [finding.name for finding in FINDINGS]
    assert [name for name in names if re.fullmatch(r"D\d+", name)] == [f"D{number}" for number in range(1, 20)]
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-m", "gpu", GPU_TESTS],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"MAXK_GPU_CHECK": "cpu"},
    ).stdout  # fmt: skip
    defined = [line.partition("::")[2] for line in collected.splitlines() if "::" in line]
    chosen: set[str] = set()
    for finding in FINDINGS:
        if finding.tests is None:
            assert finding.elsewhere is not None
            assert (ROOT / finding.elsewhere).exists()
        else:
            words = finding.tests.split(" or ")
            found = {name for name in defined if any(word in name for word in words)}
            assert found, finding.name
            chosen |= found
    assert chosen == set(defined)


def test_steps_that_fail_hang_or_die_stop_no_other(tmp_path: Path) -> None:
    steps = Steps(tmp_path, {}, 60)
    programs = {
        "fails": "raise ValueError('no memory')",
        "hangs": "import time; time.sleep(60)",
        "dies": "import os; os.kill(os.getpid(), 11)",
        "works": "print('fine')",
    }
    for name, program in programs.items():
        steps.note(steps.run(name, "", [sys.executable, "-c", program], 3 if name == "hangs" else 30))
    assert [outcome.verdict for outcome in steps.outcomes] == ["FAILED", "TIMED OUT", "FAILED", "passed"]
    assert steps.outcomes[0].remark == "ValueError: no memory"
    assert list(steps.outcomes[3].tail) == ["fine"]
    late = Steps(tmp_path, {}, 0.0).run("late", "", [sys.executable, "-c", ""], 30)
    assert late.verdict == "not run"


@pytest.mark.slow
def test_a_finding_whose_tests_are_all_skipped_has_not_passed(tmp_path: Path) -> None:
    steps = Steps(tmp_path, {"MAXK_GPU_CHECK": "cpu", "PYTHONPATH": str(ROOT)}, 500, patience=5.0)
    steps.check(Finding(name="D6", about="", tests="d06"))
    (outcome,) = steps.outcomes
    assert (outcome.verdict, outcome.remark) == ("skipped", "needs two GPUs")


@pytest.mark.slow
def test_a_rehearsal_ends_with_one_file(tmp_path: Path) -> None:
    command = [*SCRIPT, "--cpu", "--only", "D9", "D13", "D11", "--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    verdicts = {row["name"]: row["verdict"] for row in report["rows"]}
    assert verdicts == {"D9": "passed", "D11": "passed", "D13": "skipped"}
    assert report["facts"]["is_rehearsal_on_cpu"]
    assert report["facts"]["versions"]["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.vllm
def test_the_configurations_of_one_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    """Their strategies, optimizers and engines, with the tiny policy: one qwen config died when its training began."""
    command = [*SCRIPT, "--cpu", "--only", "qwen7b", "qwen7b_80gb", "qwen0.5b_lora", "--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [row["verdict"] for row in report["rows"]] == ["passed"] * 3
