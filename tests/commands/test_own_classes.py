"""The README's own reward and objective, as they are printed there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.runs import scalars

SECTION = "## Your own problems with tests, rewards and objectives"


@pytest.mark.slow
def test_the_readmes_own_reward_and_objective_train(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split(SECTION)[1].split("\n### ")[0]
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", section, re.DOTALL))  # the last of each language
    (tmp_path / "mine.py").write_text(blocks["python"].split("# mine.py\n")[1])
    (tmp_path / "mine.yaml").write_text(blocks["yaml"])
    assert "mine.Brevity" in blocks["yaml"]
    command = [sys.executable, "-m", "maxk_lightning", "fit", "--config", str(ROOT / "configs/tiny.yaml")]
    command += ["--config", "mine.yaml", "--trainer.max_epochs", "1", "--trainer.default_root_dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = scalars(tmp_path / "run")
    assert all(0.05 < value < 0.95 for value in logged["train/reward"].values())
    assert all(value < 0.5 for value in logged["train/zero_credit_fraction"].values())
