"""Checkpoint files that are either whole or absent; directories are written by `FSDP2Strategy`."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from maxk_lightning.checkpoints import is_sharded, read_sharded, replace_checkpoint


class RolloutCheckpoint(ModelCheckpoint):
    """Saves as Lightning does, with three differences.

    A checkpoint that is due after the last step of a rollout is saved at the end of the epoch: Lightning would resume
    it after the hook in which the next rollout is sampled. With `save_top_k` 0 `save_last` still saves whenever a
    checkpoint is due, where Lightning 2.6 would wait for the end of the run. With `monitor` the best checkpoint is kept
    (`save_top_k` 0 means 1 then), and a `val/...` metric is judged only in rollouts that were validated.
    """

    _is_validated = False  # the rollout that is being trained on

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin afresh, after `check`."""
        self.check()
        if self.monitor is not None and self.save_top_k == 0:
            self.save_top_k = 1
        self._is_validated = False  # the validation before training belongs to no rollout
        super().setup(trainer, pl_module, stage)

    def check(self) -> None:
        """Refuse `train_time_interval`, which has no effect under manual optimization, and to keep nothing at all.

        Raises:
            ValueError: naming the key.
        """
        if self._train_time_interval is not None:
            raise ValueError("checkpoint.train_time_interval has no effect here: set checkpoint.every_n_train_steps")
        if not self.save_last and self.save_top_k == 0 and self.monitor is None:
            raise ValueError(
                "checkpoint.save_last is off and checkpoint.save_top_k 0: nothing of the run would be kept"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state; Lightning 2.6 would do so after `fast_dev_run`, too."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().on_train_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something new to judge by."""
        self._is_validated = True
        super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when `every_n_train_steps` is due in the middle of a rollout."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save when `every_n_train_steps` or `every_n_epochs` is due at the end of a rollout."""
        super().on_train_batch_end(trainer, pl_module, None, None, trainer.fit_loop.batch_idx)
        super().on_train_epoch_end(trainer, pl_module)
        self._is_validated = False

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        is_new = self._is_validated or not (self.monitor or "").startswith("val/")
        if is_new:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        if self.save_top_k == 0 or not is_new:
            self._last_global_step_saved = trainer.global_step  # what Lightning checks before it saves the last one


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a process killed at any moment leaves the previous checkpoint whole.

    Lightning's own writer goes through a temporary file that may lie on another file system, where the final move is
    a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save to `path`; `storage_options` are not supported."""
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if target.is_dir():
            replace_checkpoint(part, target)
        else:
            part.replace(target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a file to host memory, whatever `map_location`, or a directory that a sharded run wrote.

        Lightning's default is a function, under which torch does not rebuild tensors such as 8-bit optimizer states.
        """
        if is_sharded(Path(path)):
            return read_sharded(Path(path))
        checkpoint: dict[str, Any] = super().load_checkpoint(path, "cpu", weights_only)  # type: ignore[arg-type]
        return checkpoint
