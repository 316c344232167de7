"""`fit` and `predict` with the checkpoint of another directory say nothing that does not matter."""

import warnings
from pathlib import Path

from maxk_lightning.commands.trainer import ignore_noise
from tests.support.tiny_run import run

NOISE = ("The dirpath has changed from", "Couldn't infer the batch indices")


def test_a_checkpoint_of_another_directory_is_no_reason_for_warnings(random_policy: str, tmp_path: Path) -> None:
    run("fit", tmp_path / "run", random_policy, **{"checkpoint.monitor": "val/reward", "trainer.max_epochs": 1})
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for is_ignored, expected in ((False, set(NOISE)), (True, set())):
        seen: set[str] = set()
        for command in ("fit", "predict"):
            root = tmp_path / f"{command}-{is_ignored}"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if is_ignored:
                    ignore_noise()
                run(command, root, random_policy, ckpt_path=last, **{"trainer.default_root_dir": root})
            seen |= {noise for noise in NOISE for each in caught if noise in str(each.message)}
        assert seen == expected
