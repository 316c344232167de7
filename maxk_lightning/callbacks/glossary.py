"""The glossary of logged metrics in the logger, beside the metrics."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from maxk_lightning.callbacks.pages import pages, tell_of_others

GLOSSARY = Path(__file__).with_name("metrics.md")


class GlossaryWriter(Callback):
    """Writes `metrics.md` to every logger once per run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, unless this run resumes an earlier one."""
        if trainer.global_step:
            return
        tell_of_others(trainer.loggers)
        for page in pages(trainer):
            page.text("glossary", GLOSSARY.read_text("utf-8"), trainer.global_step)
