"""The own reward and objective of the guides, as they are printed there: they train."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import blocks_of
from tests.support.paths import ROOT
from tests.support.runs import scalars

GUIDES = [ROOT / "docs" / "how_to" / name for name in ("rewards.md", "objectives.md")]


@pytest.mark.slow
def test_own_reward_and_objective_of_the_guides_train(tmp_path: Path) -> None:
    found = [block for guide in GUIDES for block in blocks_of(guide)]
    (tmp_path / "mine.py").write_text("\n".join(block.text for block in found if block.file == "mine.py"))
    configs = [block.text for block in found if block.file == "mine.yaml"]
    (tmp_path / "mine.yaml").write_text("\n".join(configs))
    assert "mine.Brevity" in configs[0]
    assert "mine.MeanCentred" in configs[1]
    command = [sys.executable, "-m", "maxk_lightning", "fit", "--config", str(ROOT / "configs/tiny.yaml")]
    command += ["--config", "mine.yaml", "--trainer.max_epochs", "1", "--trainer.default_root_dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = scalars(tmp_path / "run")
    assert all(0.05 < value < 0.95 for value in logged["train/reward"].values())
    assert all(value < 0.5 for value in logged["train/zero_credit_fraction"].values())
