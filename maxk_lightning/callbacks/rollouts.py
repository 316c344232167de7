"""The generation callback: before every epoch it refreshes the rollout that the epoch is about."""

import logging
import random
import time

import numpy as np
import torch
from lightning import Callback, Trainer

from maxk_lightning.datamodule import EvalStage, PromptDataModule
from maxk_lightning.experience import Rollout, collect
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import Staged, check_group_size
from maxk_lightning.rewards import Reward, UnitTestReward
from maxk_lightning.rollouts import RolloutEngine, TransformersEngine
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Sampling

logger = logging.getLogger(__name__)


class RolloutCallback(Callback):
    """Holds the engine and the reward; hands scored groups to the DataModule's buffers."""

    def __init__(
        self,
        engine: RolloutEngine = TransformersEngine(),  # noqa: B008  (loads nothing before its first use)
        reward: Reward = UnitTestReward(),  # noqa: B008
        sampling: Sampling = Sampling(),  # noqa: B008
        eval_sampling: Sampling = Sampling(num_completions=32),  # noqa: B008
    ) -> None:
        """Choose the parts.

        Args:
            engine: Samples completions.
            reward: Scores them.
            sampling: Of training rollouts; the paper's defaults.
            eval_sampling: Of validation, test and predict.

        Raises:
            ValueError: `sampling.top_p` is not 1.
        """
        if sampling.top_p != 1.0:
            raise ValueError(
                f"rollout.sampling.top_p is {sampling.top_p}: training needs 1.0, because log-probs of a truncated "
                "distribution are not those of the policy being trained"
            )
        self.engine = engine
        self.reward = reward
        self.sampling = sampling
        self.eval_sampling = eval_sampling
        self._synced_step: int | None = None
        self._training_since = 0.0

    def setup(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:  # type: ignore[override]
        """Refuse an objective that cannot work with this group size before anything expensive starts."""
        self._synced_step = None
        if stage == "fit":
            check_group_size(pl_module.objective, self.sampling.num_completions)
            if trainer.gradient_clip_val:
                raise ValueError("trainer.gradient_clip_val: set model.max_grad_norm instead")
            if trainer.accumulate_grad_batches != 1:
                raise ValueError("trainer.accumulate_grad_batches: set model.prompts_per_micro_batch instead")
            if isinstance(pl_module.objective, Staged) and (trainer.max_epochs or 0) < 1:
                raise ValueError("model.objective: a Staged objective needs trainer.max_epochs, to know its progress")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score this epoch's rollout from the weights as they are."""
        index = trainer.current_epoch
        datamodule = _datamodule(trainer)
        _seed_global_generators(derive_seed(datamodule.seed, "rollout", index, trainer.global_rank))
        self._sync(trainer, pl_module)
        problems, prompts = datamodule.rollout_prompts(index)
        rollout = collect(self.engine, self.reward, problems, prompts, self.sampling)
        datamodule.fill("fit", rollout, index)
        pl_module.log_rollout(rollout)
        _log_times(pl_module, rollout)
        self._training_since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Log how long the PPO iterations took."""
        pl_module.log("time/train_s", time.perf_counter() - self._training_since, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the validation problems."""
        self._evaluate(trainer, pl_module, "validate")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the test problems."""
        self._evaluate(trainer, pl_module, "test")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the problems to predict."""
        self._evaluate(trainer, pl_module, "predict")

    def _evaluate(self, trainer: Trainer, pl_module: PolicyModule, stage: EvalStage) -> None:
        datamodule = _datamodule(trainer)
        self._sync(trainer, pl_module)
        problems, prompts = datamodule.eval_prompts(stage)
        datamodule.fill(stage, collect(self.engine, self.reward, problems, prompts, self.eval_sampling))

    def _sync(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        """Give the engine the current weights, unless it has them."""
        if self._synced_step != trainer.global_step:
            self.engine.load_weights(pl_module.hf_weights(), trainer.global_step)
            self._synced_step = trainer.global_step


def _datamodule(trainer: Trainer) -> PromptDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, PromptDataModule), "RolloutCallback needs a PromptDataModule"
    return datamodule


def _seed_global_generators(seed: int) -> None:
    """Make global randomness, which user code may draw from, a function of the rollout: a resume then repeats it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _log_times(pl_module: PolicyModule, rollout: Rollout) -> None:
    num_tokens = sum(len(completion.token_ids) for completion in rollout.completions)
    pl_module.log("time/generate_s", rollout.generate_s, sync_dist=True)
    pl_module.log("time/score_s", rollout.score_s, sync_dist=True)
    pl_module.log("time/generated_tokens_per_s", num_tokens / rollout.generate_s, sync_dist=True)
