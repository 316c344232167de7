"""The progress bars of a run: rollouts, and what the current one is about."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import Progress, TaskID

from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.callbacks.sampling_bar import SamplingBar, make_progress


class RolloutProgressBar(ProgressBar):
    """Shows rollouts, because that is what a user waits for; below, samples as they end, and the steps of training.

    Where the output is no terminal, every rollout is a line instead.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Make the bars.

        Args:
            console: Where to draw; None: standard error.
        """
        super().__init__()
        self._console = console or Console(stderr=True)
        self._is_enabled = True
        self._progress: Progress | None = None
        self._rollouts = self._steps = TaskID(0)
        self._since = 0.0

    def disable(self) -> None:
        """Hide the bars; Lightning calls this on every rank but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bars."""
        self._is_enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to draw, and to watch the sampler."""
        super().setup(trainer, pl_module, stage)
        self._stop()
        self._progress = make_progress(self._console, self._is_enabled)
        self._rollouts = self._progress.add_task("rollouts", total=None, visible=False, shown="")
        self._steps = self._progress.add_task("  training", total=None, visible=False, shown="steps")
        callback = rollout_callback(trainer)
        if callback is not None and self._is_enabled:
            callback.sampler.watcher = SamplingBar(self._progress, "  sampling", self._say)
        self._progress.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the rollout a resumed run continues with."""
        assert self._progress is not None
        total = trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
        self._progress.reset(self._rollouts, total=total, completed=trainer.current_epoch, visible=True)
        self._since = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the first step, which is the longest."""
        if batch_idx == 0 and self._progress is not None:
            self._progress.reset(self._steps, total=int(trainer.num_training_batches), visible=True, shown="steps")

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Advance by an optimizer step."""
        if self._progress is not None:
            self._progress.update(self._steps, advance=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by a rollout."""
        assert self._progress is not None
        shown = shown_metrics({tag: float(value) for tag, value in trainer.callback_metrics.items()})
        self._progress.update(self._rollouts, advance=1, shown=shown)
        self._progress.update(self._steps, visible=False)
        now = time.monotonic()
        if self._progress.disable:
            self._say(
                f"rollout {trainer.current_epoch + 1} of {trainer.max_epochs}: {shown}, {now - self._since:.1f} s"
            )
        self._since = now

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the finished bars on the screen."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars."""
        self._console.print(*args, markup=False, highlight=False)

    def _say(self, line: str) -> None:
        if self._is_enabled:
            print(line, file=sys.stderr, flush=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def shown_metrics(metrics: Mapping[str, float]) -> str:
    """Write what a user looks at first: reward and best of the training samples, best of the validation samples.

    >>> shown_metrics({"train/reward": 0.25, "train/max_at_k/8": 0.5, "val/max_at_k/8": 0.4, "val/max_at_k/16": 0.625})
    'train reward 0.250, train max@8 0.500, val max@16 0.625'
    """
    parts = [f"train reward {metrics['train/reward']:.3f}"] if "train/reward" in metrics else []
    for stage in ("train", "val"):
        prefix = f"{stage}/max_at_k/"
        ks = [int(tag.removeprefix(prefix)) for tag in metrics if tag.startswith(prefix)]
        if ks:
            parts.append(f"{stage} max@{max(ks)} {metrics[f'{prefix}{max(ks)}']:.3f}")
    return ", ".join(parts)
