"""The glossary of logged metrics, beside the metrics."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

GLOSSARY = Path(__file__).parents[1] / "metrics.md"


class GlossaryWriter(Callback):
    """Writes `metrics.md` to TensorBoard's text page once per run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, unless this run goes on with an earlier one."""
        if trainer.global_step or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("glossary", GLOSSARY.read_text("utf-8"), trainer.global_step)
