"""The policy's completions: samples in the loggers, predictions as a completions file."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.utilities import rank_zero_info

from maxk_lightning.callbacks.pages import SampleRow, pages
from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.rollouts.rollout import Group


class SampleWriter(Callback):
    """Writes a few samples of the current rollout, with reward and verdicts, to every logger."""

    def __init__(self, every_n_rollouts: int = 10, num_groups: int = 2, samples_per_group: int = 2) -> None:
        """Choose how much to write; `every_n_rollouts` counts from the first. ValueError for a number below 1."""
        if min(every_n_rollouts, num_groups, samples_per_group) < 1:
            raise ValueError("samples: every_n_rollouts, num_groups and samples_per_group must be at least 1")
        self.every_n_rollouts = every_n_rollouts
        self.num_groups = num_groups
        self.samples_per_group = samples_per_group

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rollout that was just trained on."""
        callback = rollout_callback(trainer)
        if trainer.current_epoch % self.every_n_rollouts or callback is None or callback.sampler.current is None:
            return
        groups = callback.sampler.current.samples.groups[: self.num_groups]
        rows = [row for group in groups for row in rows_of(group, self.samples_per_group)]
        for page in pages(trainer):
            page.samples("train/samples", rows, trainer.global_step)


def rows_of(group: Group, num_samples: int) -> list[SampleRow]:
    """Choose the best and the worst samples of a group."""
    scored = sorted(zip(group.completions, group.scores, strict=True), key=lambda pair: -(pair[1].reward or 0.0))
    chosen = [*scored[: -(-num_samples // 2)], *scored[len(scored) - num_samples // 2 :]]
    return [
        SampleRow(
            problem=group.problem.id,
            prompt=str(group.problem.prompt),
            reward=score.reward,
            finish_reason=completion.finish_reason,
            verdicts=", ".join(f"{count} {verdict}" for verdict, count in Counter(score.verdicts).items()),
            completion=completion.text,
        )
        for completion, score in chosen
    ]


class PredictionWriter(BasePredictionWriter):
    """Writes the completions of `predict` in the format that `score` reads, one file per rank."""

    def __init__(self, path: str = "predictions.jsonl") -> None:
        """Choose the file, relative to the run's directory."""
        super().__init__(write_interval="batch")
        self.path = path
        self._replaces = False  # an earlier file

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty file."""
        self._replaces = self._file(trainer).exists()
        self._file(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._file(trainer).write_text("")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the groups of a batch."""
        with self._file(trainer).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in prediction)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the completions are."""
        rank_zero_info("wrote %s, for `score`%s", self._file(trainer), "; it replaces an earlier one" * self._replaces)

    def _file(self, trainer: Trainer) -> Path:
        path = Path(trainer.default_root_dir) / self.path
        return path if trainer.world_size == 1 else path.with_stem(f"{path.stem}_{trainer.global_rank}")
