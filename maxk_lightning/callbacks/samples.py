"""The policy's completions: samples as text in TensorBoard, predictions as a completions file."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback

from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.callbacks.tensorboard import tensorboard_writers
from maxk_lightning.rollouts.rollout import Group


class SampleWriter(Callback):
    """Writes a few groups of the current rollout, with reward and verdicts, to TensorBoard's text page."""

    def __init__(self, every_n_rollouts: int = 10, num_groups: int = 2, samples_per_group: int = 2) -> None:
        """Choose how much to write; `every_n_rollouts` counts from the first."""
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
        text = "\n\n---\n\n".join(_as_markdown(group, self.samples_per_group) for group in groups)
        for writer in tensorboard_writers(trainer):
            writer.add_text("train/samples", text, trainer.global_step)


def _as_markdown(group: Group, num_samples: int) -> str:
    """The problem, then its best and its worst samples."""
    scored = sorted(zip(group.completions, group.scores, strict=True), key=lambda pair: -(pair[1].reward or 0.0))
    chosen = [*scored[: -(-num_samples // 2)], *scored[len(scored) - num_samples // 2 :]]
    parts = [f"**{group.problem.id}**\n\n{_indented(group.problem.prompt)}"]
    for completion, score in chosen:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(score.verdicts).items())
        parts.append(f"reward {score.reward}, {completion.finish_reason}, {verdicts}\n\n{_indented(completion.text)}")
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    """A Markdown code block that no backtick inside can end."""
    return "\n".join("    " + line for line in text.splitlines())


class PredictionWriter(BasePredictionWriter):
    """Writes the completions of `predict` in the format that `score` reads, one file per rank."""

    def __init__(self, path: str = "predictions.jsonl") -> None:
        """Choose the file, relative to the run's directory."""
        super().__init__(write_interval="batch")
        self.path = path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty file."""
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

    def _file(self, trainer: Trainer) -> Path:
        path = Path(trainer.default_root_dir) / self.path
        return path if trainer.world_size == 1 else path.with_stem(f"{path.stem}_{trainer.global_rank}")
