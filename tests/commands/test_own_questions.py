"""The guide to own questions and rewards, from a wheel, in a directory that holds nothing else."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

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


def blocks() -> dict[str, list[str]]:
    """Code blocks of the guide by language."""
    found: dict[str, list[str]] = {}
    for language, text in re.findall(r"```(\w+).*?\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        found.setdefault(language, []).append(text)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that finds this package in its own wheel, and what it depends on where this one finds it."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "maxk_lightning", source / "maxk_lightning", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root / "venv"), "platbase": str(root / "venv")}))
    (wheel,) = root.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=120)
    others = [path for path in sys.path if "site-packages" in path and Path(path).is_dir()]
    (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return root / "venv" / "bin" / "python"


def test_the_guide_leads_from_a_file_of_questions_to_a_curve(python: Path, tmp_path: Path) -> None:
    found = blocks()
    (tmp_path / "questions.csv").write_text(found["csv"][0])
    (tmp_path / "my_rewards.py").write_text(found["python"][0])
    (tmp_path / "mine.yaml").write_text(found["yaml"][0])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        command = [str(python), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = run("-c", "import maxk_lightning; print(maxk_lightning.__file__)")
    assert Path(where.strip()).is_relative_to(python.parents[1])
    commands = [line.partition("#")[0].split() for line in found["bash"][0].splitlines()]
    assert [words[:3] for words in commands[:3]] == [["python", "-m", "maxk_lightning"]] * 3
    assert len(commands) == 4
    assert "What is 2 + 3?" in run(*commands[0][1:])
    run(*commands[1][1:], *SMALL)
    run(*commands[2][1:])
    assert (tmp_path / "runs" / "mine_eval" / "curves.png").stat().st_size > 1000
    assert (tmp_path / "runs" / "mine_eval" / "summary.json").is_file()
