"""The classes of CONTRIBUTING.md are right, and train together as it says."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.runs import ENVIRONMENT, scalars

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CLASSES = ("MeanOfTheOthers", "LastLine", "Sums", "PlainEngine")


def blocks(language: str) -> list[str]:
    """Code blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_class_is_there_and_its_own_assertions_hold(tmp_path: Path) -> None:
    defined = []
    for block in blocks("python"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "contributed"})
        defined += [node.name for node in ast.parse(block).body if isinstance(node, ast.ClassDef)]
    assert tuple(defined) == CLASSES


def test_every_folder_and_file_of_the_layout_is_there() -> None:
    layout = PAGE.split("## Layout")[1].split("\n## ")[0]
    names = re.findall(r"`([\w/]+(?:/|\.py))`", layout)
    assert len(names) > 15
    for name in names:
        assert (ROOT / "maxk_lightning" / name).exists(), name


def test_other_paths_of_the_page_are_there() -> None:
    paths = re.findall(r"((?:scripts|tests|maxk_lightning)/[\w./]+)", PAGE)
    assert "tests/mathematics/test_objectives_enumeration.py" in paths
    for path in paths:
        assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.slow
def test_what_was_added_trains_together(tmp_path: Path) -> None:
    (tmp_path / "contributed.py").write_text("\n\n".join(blocks("python")))
    (config,) = blocks("yaml")
    (tmp_path / "contributed.yaml").write_text(config)
    *_, command = blocks("bash")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "maxk_lightning"]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logged = scalars(tmp_path / yaml.safe_load(config)["trainer"]["default_root_dir"])
    assert len(logged["train/reward"]) == 1
    assert logged["train/loss"]
