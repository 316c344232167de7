"""How a run ends that cannot continue: with a checkpoint to resume from, and an error that says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning import Trainer

from maxk_lightning.module import PolicyModule
from maxk_lightning.rollouts import EngineError
from maxk_lightning.rollouts.ranks import RankError


def stop(trainer: Trainer, module: PolicyModule) -> None:
    """Save a run whose steps are no longer finite, with the weights from before, and raise RuntimeError."""
    raise RuntimeError(
        f"the loss or the gradient of {module.guard.num_skipped} optimizer steps in a row was not finite: training has "
        f"diverged (see train/log_ratio_std and train/credit_max); {_save_checkpoint(trainer)}, with a smaller "
        "model.optimizer.lr"
    )


@contextmanager
def saved(trainer: Trainer) -> Iterator[None]:
    """Save a checkpoint when the rollout of a new epoch fails, on all ranks; the error says so."""
    try:
        yield
    except (EngineError, RankError) as error:
        raise type(error)(f"{error}; {_save_checkpoint(trainer, is_epoch_new=True)}") from error
    except Exception as error:
        if trainer.world_size == 1:  # of several ranks the others may be elsewhere
            error.add_note(_save_checkpoint(trainer, is_epoch_new=True))
        raise


def _save_checkpoint(trainer: Trainer, *, is_epoch_new: bool = False) -> str:
    """Save the run where `--ckpt_path last` finds it; return a clause that says so, or that nothing was saved."""
    directory = getattr(trainer.checkpoint_callback, "dirpath", None)
    if not trainer.training or directory is None or trainer.global_step == 0:
        return "no checkpoint was saved"  # before the first step there is nothing that another start would lose
    path = Path(directory) / "last.ckpt"
    if is_epoch_new:  # its counters are still those of the epoch before
        trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()
    trainer.save_checkpoint(path)
    return f"the run can be continued from {path}"
