"""Checkpoint directories are replaced so that a kill at any moment leaves a whole one."""

import multiprocessing
import random
import shutil
import time
from itertools import count
from pathlib import Path

import pytest
from lightning import Trainer

from maxk_lightning.callbacks import RolloutCheckpoint
from maxk_lightning.checkpoints import discard, replace_checkpoint
from maxk_lightning.module import PolicyModule

FILES = ("a", "b", "c")


def _write_forever(root: Path) -> None:
    for version in count(_newest(root) + 1):
        part = root / "last.ckpt.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in FILES:
            (part / name).write_text(str(version))
        replace_checkpoint(part, root / "last.ckpt")


def _newest(root: Path) -> int:
    """The version of the checkpoint that `--ckpt_path last` takes; every file of it must be there."""
    found = sorted(root.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        return -1
    (version,) = {(found[-1] / name).read_text() for name in FILES}
    return int(version)


def test_a_kill_at_any_moment_leaves_the_newest_checkpoint_whole(tmp_path: Path) -> None:
    context, delays = multiprocessing.get_context("fork"), random.Random(0)
    newest, num_interrupted = -1, 0
    for _ in range(60):
        process = context.Process(target=_write_forever, args=(tmp_path,))
        process.start()
        while _is_behind(tmp_path, newest) and process.is_alive():
            time.sleep(0.001)
        time.sleep(delays.uniform(0.0, 0.003))
        process.kill()
        process.join()
        assert _newest(tmp_path) > newest
        newest = _newest(tmp_path)
        num_interrupted += (tmp_path / "last-replaced.ckpt").exists() or (tmp_path / "last.ckpt.part").exists()
    assert num_interrupted > 0  # or no kill came at a delicate moment


def _is_behind(root: Path, version: int) -> bool:
    """Whether a first version newer than `version` is still to come; the writer may be renaming at this moment."""
    try:
        return int((root / "last.ckpt" / FILES[-1]).read_text()) <= version
    except (FileNotFoundError, NotADirectoryError):
        return True


def test_files_and_directories_replace_each_other(tmp_path: Path) -> None:
    target, part = tmp_path / "last.ckpt", tmp_path / "last.ckpt.part"
    target.write_text("a file")
    part.mkdir()
    (part / "a").write_text("in a directory")
    replace_checkpoint(part, target)
    assert (target / "a").read_text() == "in a directory"
    part.write_text("a file")
    replace_checkpoint(part, target)
    assert target.read_text() == "a file"
    discard(target)
    assert list(tmp_path.iterdir()) == []


def test_a_trigger_that_is_never_pulled_is_refused() -> None:
    from datetime import timedelta

    checkpoint = RolloutCheckpoint(train_time_interval=timedelta(minutes=5))
    with pytest.raises(ValueError, match=r"checkpoint\.train_time_interval has no effect"):
        checkpoint.setup(Trainer(accelerator="cpu", logger=False, barebones=True), PolicyModule(), "fit")
