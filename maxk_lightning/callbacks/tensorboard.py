"""Where callbacks write what is no scalar."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard_writers(trainer: Trainer) -> list[Any]:
    """Return the `SummaryWriter`s of a run; on ranks other than the first there are none."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
