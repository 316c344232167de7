"""The choices of a run in its loggers, where runs compare: TensorBoard's HPARAMS table, W&B's config, and so on."""

from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.metrics import powers_of_two
from maxk_lightning.module import PolicyModule

TEXTS = (
    "policy", "objective", "baseline", "policy_loss", "kl_target", "optimizer", "train", "engine", "reward",
)  # fmt: skip
NUMBERS = (
    "k", "n", "lr", "num_ppo_iterations", "kl_coef", "max_grad_norm", "temperature", "max_new_tokens",
    "prompts_per_rollout", "prompts_per_step", "refill", "rollouts_ahead", "max_age", "max_epochs", "eval_n", "seed",
)  # fmt: skip
SHOWN = ("objective", "k", "n", "lr", "num_ppo_iterations")
"Columns that TensorBoard shows until more are ticked; by default it takes the first five in alphabetical order."
Hyperparameters = dict[str, str | float | None]


class HyperparameterWriter(Callback):
    """Writes the run's hyper-parameters when training starts.

    TensorBoard itself puts the last value of each metric beside them, so a run that still runs, or was killed, is in
    the table too, with the numbers it has reached. All runs write the same columns, because TensorBoard takes those
    of any one run for all; metric columns reach to the run's own `eval_n`. A resumed run writes the same row again,
    which TensorBoard shows once. (`save_hyperparameters` would put them into checkpoints, where the command line reads
    them back over what the user asks for.)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write columns and row."""
        from torch.utils.tensorboard.summary import hparams  # a second to import, which every command would wait for

        chosen = hyperparameters(trainer, pl_module)
        _, start, _ = hparams(chosen, {})  # type: ignore[no-untyped-call]
        _write(trainer, _columns(int(chosen["eval_n"] or 0)), start)
        known = {name: value for name, value in chosen.items() if value is not None}
        for each in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(each, MLFlowLogger):
                _log_to_mlflow(each, known, trainer.global_step)
            elif not isinstance(each, TensorBoardLogger):
                each.log_hyperparams(known)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as ended."""
        from torch.utils.tensorboard.summary import hparams

        _, _, end = hparams({}, {})  # type: ignore[no-untyped-call]
        _write(trainer, end)


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> Hyperparameters:
    """Collect the columns `TEXTS` and `NUMBERS` of a run, named as in the configuration; None: it has no such choice.

    n is `rollout.sampling.num_completions`, eval_n that of `rollout.eval_sampling`.
    """
    assert isinstance(pl_module, PolicyModule)
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, PromptDataModule)
    rollout = rollout_callback(trainer)
    assert rollout is not None
    optimizer = trainer.optimizers[0]
    objective, first = pl_module.objective, optimizer.param_groups[0]
    return {
        "policy": pl_module.policy_name,
        "objective": _class(objective),
        "baseline": getattr(objective, "baseline", None),
        "policy_loss": _class(pl_module.policy_loss),
        "kl_target": pl_module.kl_target,
        "optimizer": _class(optimizer),
        "train": _class(datamodule.sources["fit"]),
        "engine": _class(rollout.engine),
        "reward": getattr(rollout.reward, "name", _class(rollout.reward)),
        "k": getattr(objective, "k", None),
        "n": rollout.sampling.num_completions,
        # A schedule has moved the other one when a run is resumed; torchao's are tensors.
        "lr": float(first.get("initial_lr", first["lr"])),
        "num_ppo_iterations": datamodule.num_ppo_iterations,
        "kl_coef": pl_module.kl_coef,
        "max_grad_norm": pl_module.max_grad_norm,
        "temperature": rollout.sampling.temperature,
        "max_new_tokens": rollout.sampling.max_new_tokens,
        "prompts_per_rollout": datamodule.prompts_per_rollout,
        "prompts_per_step": datamodule.prompts_per_step,
        "refill": datamodule.refill,
        "rollouts_ahead": rollout.rollouts_ahead,
        "max_age": rollout.max_age,
        "max_epochs": trainer.max_epochs,
        "eval_n": rollout.eval_sampling.num_completions,
        "seed": datamodule.seed,
    }


def metric_tags(eval_n: int) -> list[str]:
    """List the metrics of the table; TensorBoard shows the first five until more are ticked.

    >>> metric_tags(6)
    ['val/reward', 'val/max_at_k/4', 'train/reward', 'val/max_at_k/1', 'val/max_at_k/2']
    """
    *ks, largest = powers_of_two(eval_n)
    return ["val/reward", f"val/max_at_k/{largest}", "train/reward", *(f"val/max_at_k/{k}" for k in ks)]


def _columns(eval_n: int) -> Any:
    """The summary that names the columns; the values given to `hparams` only say their types."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    names: dict[str, str | float] = {**dict.fromkeys(TEXTS, ""), **dict.fromkeys(NUMBERS, 0.0)}
    summary, _, _ = hparams(names, dict.fromkeys(metric_tags(eval_n), 0.0))  # type: ignore[no-untyped-call]
    plugin_data = summary.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in SHOWN  # what TensorBoard puts first
    plugin_data.content = content.SerializeToString()
    return summary


def _class(thing: Any) -> str:
    return type(thing).__name__


def _log_to_mlflow(page: MLFlowLogger, chosen: Mapping[str, str | float], step: int) -> None:
    """Log as parameters, which MLflow never changes: what a resumed run chose anew becomes a tag."""
    client: Any = page.experiment
    there: dict[str, str] = client.get_run(page.run_id).data.params
    page.log_hyperparams({name: value for name, value in chosen.items() if name not in there})
    for name, value in chosen.items():
        if there.get(name, str(value)) != str(value):
            client.set_tag(page.run_id, f"{name} from step {step}", str(value))


def _write(trainer: Trainer, *summaries: Any) -> None:
    writers = [each.experiment for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
    for writer in writers if trainer.is_global_zero else []:
        file = writer._get_file_writer()  # as Lightning's own logger does; it reopens a closed file
        for summary in summaries:
            file.add_summary(summary)
        writer.flush()
