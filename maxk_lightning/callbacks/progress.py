"""The progress bar over rollouts."""

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class RolloutProgressBar(ProgressBar):
    """Shows a bar whose unit is the rollout, because that is what a user waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._is_enabled = True

    def disable(self) -> None:
        """Hide the bar; Lightning calls this on every rank but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the rollout a resumed run continues with."""
        self._bar = tqdm(
            total=trainer.max_epochs,
            initial=trainer.current_epoch,
            desc="rollouts",
            disable=not self._is_enabled,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance, with the reward and the best max@k of the rollout."""
        metrics = trainer.callback_metrics
        shown = {"reward": metrics.get("train/reward"), "loss": metrics.get("train/loss")}
        ks = sorted(int(tag.rsplit("/", 1)[1]) for tag in metrics if tag.startswith("train/max_at_k/"))
        if ks:
            shown[f"max@{ks[-1]}"] = metrics[f"train/max_at_k/{ks[-1]}"]
        self._bar.set_postfix({name: f"{float(value):.3f}" for name, value in shown.items() if value is not None})
        self._bar.update(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)
