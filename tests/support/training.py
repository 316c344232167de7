"""Short trainings in this process: a real Trainer, real rollouts of a small policy."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from torch import Tensor

from maxk_lightning.callbacks import AtomicCheckpointIO, RolloutCallback
from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import MaxAtK
from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.rollout import Rollout
from maxk_lightning.types import Sampling
from tests.support.fakes import LengthReward

SAMPLING = Sampling(num_completions=4, max_new_tokens=8)
DATA = {"prompts_per_rollout": 4, "num_ppo_iterations": 2, "validation": None}


@dataclass(frozen=True)
class Fit:
    """What a training leaves behind."""

    module: PolicyModule
    datamodule: PromptDataModule
    trainer: Trainer

    @property
    def rollout(self) -> Rollout:
        """The last rollout."""
        callback = rollout_callback(self.trainer)
        assert callback is not None
        assert callback.sampler.current is not None
        return callback.sampler.current

    @property
    def weights(self) -> dict[str, Tensor]:
        """Copies of the trained weights under the names of the Hugging Face model."""
        return {name: tensor.clone() for name, tensor in self.module.hf_weights()}


def fit(
    policy: str,
    root: Path,
    *,
    epochs: int = 2,
    reward: Reward | None = None,
    sampling: Sampling = SAMPLING,
    rollout: RolloutCallback | None = None,
    callbacks: Sequence[Callback] = (),
    module: Mapping[str, Any] | None = None,
    module_class: type[PolicyModule] = PolicyModule,
    data: Mapping[str, Any] | None = None,
    ckpt_path: Path | None = None,
    num_ranks: int = 1,
) -> Fit:
    """Train for some rollouts.

    Args:
        policy: directory of the policy.
        root: directory of the run.
        epochs: rollouts in all, those of `ckpt_path` included.
        reward: default: `LengthReward`.
        sampling: of the rollouts.
        rollout: a callback of the test's own in place of one with `reward` and `sampling`.
        callbacks: others.
        module: options of `PolicyModule`.
        module_class: a module of the test's own.
        data: options of `PromptDataModule` over `DATA`.
        ckpt_path: checkpoint to go on from.
        num_ranks: processes; several only in a script, which Lightning starts again for the others.
    """
    torch.manual_seed(0)
    rollout = rollout or RolloutCallback(TransformersEngine(policy), reward or LengthReward(), sampling)
    made = module_class(**{"policy": policy, "objective": MaxAtK(k=2), **(module or {})})
    datamodule = PromptDataModule(**{"train": Builtin("train", limit=8), "policy": policy, **DATA, **(data or {})})
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        strategy="auto" if num_ranks == 1 else "ddp",
        devices=num_ranks,
        use_distributed_sampler=False,  # as the command line has it: ranks take their own share
        default_root_dir=root,
        callbacks=[rollout, *callbacks],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )
    # torchao compiles its step, which takes a minute on a CPU; what it computes does not depend on it.
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        trainer.fit(made, datamodule, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return Fit(made, datamodule, trainer)
