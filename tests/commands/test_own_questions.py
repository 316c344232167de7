"""The guide to own questions and rewards, from a wheel, in a directory that holds nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.distribution import build_wheel, copy_sources, environment_with
from tests.support.pages import blocks_of
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
GUIDE = ROOT / "docs" / "how_to" / "questions.md"
SMALL = (
    "--trainer.accelerator",
    "cpu",
    "--rollout.sampling.max_new_tokens",
    "24",
    "--trainer.enable_progress_bar",
    "false",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that finds this package in its own wheel, and what it depends on where this one finds it."""
    root = tmp_path_factory.mktemp("wheel")
    return environment_with(build_wheel(copy_sources(root / "source"), root), root / "venv")


def test_the_guide_leads_from_a_file_of_questions_to_a_curve(python: Path, tmp_path: Path) -> None:
    found = blocks_of(GUIDE)
    for block in found:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
    bash = next(block.text for block in found if block.language == "bash")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        command = [str(python), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = run("-c", "import maxk_lightning; print(maxk_lightning.__file__)")
    assert Path(where.strip()).is_relative_to(python.parents[1])
    assert "evaluate" in run("-m", "maxk_lightning", "--help")
    commands = [line.partition("#")[0].split() for line in bash.splitlines()]
    assert [words[:3] for words in commands[:3]] == [["python", "-m", "maxk_lightning"]] * 3
    assert len(commands) == 4
    assert "What is 2 + 3?" in run(*commands[0][1:])
    run(*commands[1][1:], *SMALL)
    run(*commands[2][1:])
    assert (tmp_path / "runs" / "mine_eval" / "curves.png").stat().st_size > 1000
    assert (tmp_path / "runs" / "mine_eval" / "summary.json").is_file()
