"""The glossary of logged metrics in TensorBoard, beside the metrics."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from maxk_lightning.callbacks.tensorboard import tensorboard_writers

GLOSSARY = Path(__file__).with_name("metrics.md")


class GlossaryWriter(Callback):
    """Writes `metrics.md` to TensorBoard's text page once per run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, unless this run resumes an earlier one."""
        if trainer.global_step:
            return
        for writer in tensorboard_writers(trainer):
            writer.add_text("glossary", GLOSSARY.read_text("utf-8"), trainer.global_step)
