"""The configuration of a run: its checkpoints hold it, a resumed run keeps it, and changes are named."""

from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from maxk_lightning.checkpoints import Configuration
from maxk_lightning.commands.configurations import changes
from maxk_lightning.commands.whole_file import write_whole
from maxk_lightning.module import PolicyModule
from maxk_lightning.schedules import reconfigure

CONFIGURATIONS = "configurations"
"Key of a checkpoint: the configurations that its weights were trained with, the first one first."
OPTIMIZER = ("model.optimizer", "model.lr_scheduler")


class RunConfigCallback(SaveConfigCallback):
    """Writes `config.yaml` into the run's directory, and every configuration of the run into its checkpoints.

    A run that is resumed with other settings of `model.optimizer` or `model.lr_scheduler` continues with these, where
    Lightning restores those of the checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text = self.parser.dump(self.config, skip_unset=False)
        self._history = [Configuration(step=0, text=text)]
        self._is_optimizer_new = False

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; commands that only evaluate leave it as it is."""
        if stage == "fit":
            write_whole(Path(trainer.default_root_dir) / "config.yaml", self._history[-1].text)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep all configurations of the run."""
        checkpoint[CONFIGURATIONS] = [{"step": each.step, "text": each.text} for each in self._history]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the history of the run; what this command changes is one more configuration."""
        earlier = [Configuration(**each) for each in checkpoint.get(CONFIGURATIONS, [])]
        if not earlier:
            return
        changed = changes(yaml.safe_load(earlier[-1].text), yaml.safe_load(self._history[-1].text))
        self._is_optimizer_new = any(change.key.startswith(OPTIMIZER) for change in changed)
        new = Configuration(step=checkpoint["global_step"], text=self._history[-1].text)
        self._history = [*earlier, new] if changed else earlier

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let new settings of optimizer and schedule take effect, and keep the earlier configurations as files."""
        if trainer.is_global_zero:
            for each in self._history[:-1]:
                write_whole(Path(trainer.default_root_dir) / f"config-from-step-{each.step}.yaml", each.text)
        if not self._is_optimizer_new:
            return
        assert isinstance(pl_module, PolicyModule)
        self._is_optimizer_new = False
        optimizer = trainer.optimizers[0]
        steps = trainer.global_step
        schedule = reconfigure(optimizer, pl_module.optimizer_from, pl_module.lr_scheduler_from, steps)
        if schedule is not None:
            trainer.lr_scheduler_configs[0].scheduler = schedule
        rank_zero_info("model.optimizer: the learning rate of step %s is %g", steps, optimizer.param_groups[0]["lr"])
