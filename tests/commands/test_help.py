"""The help of the training commands: files hold what the parser says, and do not speak for other releases."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maxk_lightning.cli import TRAINING, main
from maxk_lightning.commands import help as help_files
from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.paths import ROOT

REMEDY = "run scripts/write_help.py"


def _keys(text: str) -> str:
    """A text without what depends on this process: classes that it knows, those of tests among them, and the order of
    a union's members, for which Python answers with the first union of the same that was ever made."""
    without = re.sub(r",\s+known\s+subclasses:.*?\)", "", " ".join(text.split()))
    return re.sub(r"\(type: .*?default:", lambda found: " ".join(sorted(re.findall(r"[\w.'-]+", found[0]))), without)


@pytest.mark.parametrize("command", TRAINING)
def test_a_file_says_what_the_parser_says(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        MaxKCLI([command, "--help"])
    expected = _keys(capsys.readouterr().out)
    assert "--rollout.sampling.temperature" in expected
    monkeypatch.setattr(sys, "argv", ["maxk_lightning", command, "--help"])
    main()
    assert _keys(capsys.readouterr().out) == expected, REMEDY


@pytest.mark.slow
def test_the_files_are_current(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "write_help.py"), "--out", str(tmp_path)]
    subprocess.run(script, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL, check=True)
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert len(written) == 1 + len(TRAINING)
    for name, text in written.items():
        assert (help_files.FOLDER / name).read_text("utf-8") == text, REMEDY


@pytest.mark.parametrize("releases", ["lightning==0.1 torch==0.1 jsonargparse==0.1", ""])
def test_for_other_releases_the_parser_is_asked(releases: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert help_files.stored("fit") is not None
    monkeypatch.setattr(help_files, "releases", lambda: releases)
    assert help_files.stored("fit") is None
