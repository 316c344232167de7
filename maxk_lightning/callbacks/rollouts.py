"""The generation callback: before every epoch it refreshes the rollout that the epoch is about."""

import logging
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from maxk_lightning.callbacks.weight_sync import WeightSync
from maxk_lightning.datamodule import EvalStage, PromptDataModule
from maxk_lightning.module import ONCE, PolicyModule
from maxk_lightning.objectives import Staged, check_group_size
from maxk_lightning.rewards import Reward, UnitTestReward
from maxk_lightning.rollouts import EngineError, RolloutEngine, TransformersEngine, VLLMEngine
from maxk_lightning.rollouts.collect import collect
from maxk_lightning.rollouts.rollout import Rollout
from maxk_lightning.rollouts.stored import from_state, to_state
from maxk_lightning.seeds import derive_seed
from maxk_lightning.strategy import FSDP2Strategy
from maxk_lightning.types import Problem, Prompt, Sampling

logger = logging.getLogger(__name__)


class RolloutCallback(Callback):
    """Holds the engine and the reward; hands scored groups to the DataModule's buffers."""

    def __init__(
        self,
        engine: RolloutEngine = TransformersEngine(),  # noqa: B008  (loads nothing before its first use)
        reward: Reward = UnitTestReward(),  # noqa: B008
        sampling: Sampling = Sampling(),  # noqa: B008
        eval_sampling: Sampling = Sampling(num_completions=32),  # noqa: B008
        rollouts_ahead: Literal[0, 1] = 0,
        max_logprob_gap: float = 0.2,
    ) -> None:
        """Choose the parts.

        Args:
            engine: Samples completions.
            reward: Scores them.
            sampling: Of training rollouts; the paper's defaults.
            eval_sampling: Of validation, test and predict.
            rollouts_ahead: 1: sample and score the next rollout, with the weights from before, while this one trains.
                One rollout off-policy, which exact and first-order off-policy objectives correct for; `rollout/age`
                says how old. Checkpoints hold the rollout that is under way, so a resumed run goes on exactly.
            max_logprob_gap: Stop when, right after a weight sync, the log-probs of engine and trainer differ by more
                on average (nats per token). With bfloat16 on one side 0.05 was seen on a tiny policy; float32 on both
                sides differs by less than 1e-5 and deserves a bound of 1e-4.

        Raises:
            ValueError: `sampling.top_p` is not 1, a bound is not positive, or options that exclude each other.
        """
        if sampling.top_p != 1.0:
            raise ValueError(
                f"rollout.sampling.top_p is {sampling.top_p}: training needs 1.0, because log-probs of a truncated "
                "distribution are not those of the policy being trained"
            )
        if rollouts_ahead not in (0, 1):
            raise ValueError(f"rollout.rollouts_ahead is {rollouts_ahead}, must be 0 or 1")
        if not max_logprob_gap > 0.0:
            raise ValueError(f"rollout.max_logprob_gap is {max_logprob_gap}, must be positive")
        if rollouts_ahead and isinstance(engine, VLLMEngine) and engine.sleep_while_training:
            raise ValueError("rollout.engine.sleep_while_training: with rollouts_ahead the engine works meanwhile")
        self.engine = engine
        self.reward = reward
        self.sampling = sampling
        self.eval_sampling = eval_sampling
        self.rollouts_ahead = rollouts_ahead
        self._sync = WeightSync(engine, max_logprob_gap)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._ahead: tuple[int, Future[Rollout]] | None = None
        self._stored_ahead: dict[str, Any] | None = None
        self._logged_epoch: int | None = None
        self._training_since = self._training_until = 0.0

    def setup(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:  # type: ignore[override]
        """Refuse an objective that cannot work with this group size before anything expensive starts."""
        self._sync.version = None
        self._ahead = None
        self._logged_epoch = None
        if stage == "fit":
            _check_trainer(trainer)
            check_group_size(pl_module.objective, self.sampling.num_completions)
            if isinstance(pl_module.objective, Staged) and (trainer.max_epochs or 0) < 1:
                raise ValueError("model.objective: a Staged objective needs trainer.max_epochs, to know its progress")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score this epoch's rollout, or take the one that was sampled ahead."""
        index = trainer.current_epoch
        datamodule = _datamodule(trainer)
        _seed_global_generators(derive_seed(datamodule.seed, "rollout", index, trainer.global_rank))
        rollout = self._take_ahead(trainer, index)
        if rollout is None:
            rollout = self._sample(trainer, pl_module, *datamodule.rollout_prompts(index), self.sampling)
        datamodule.fill("fit", rollout, index)
        self._log_once(trainer, pl_module, num_done=0)
        if self.rollouts_ahead and trainer.max_epochs is not None and index + 1 != trainer.max_epochs:
            self._start_ahead(trainer, pl_module, index + 1)
        else:
            self._sync.sleep()
        self._training_since = time.perf_counter()

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, batch: Rollout, batch_idx: int
    ) -> None:
        """Log a rollout that a resumed run found in the checkpoint, before the first step that is left of it."""
        seed = derive_seed(_datamodule(trainer).seed, "step", trainer.global_step, trainer.global_rank)
        _seed_global_generators(seed)
        self._log_once(trainer, pl_module, num_done=batch_idx)

    def on_train_batch_end(self, *_: object) -> None:
        """Look at the clock: a validation may follow before the epoch ends."""
        self._training_until = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Log how long the PPO iterations took, or those of them that a resumed run has made."""
        self._log_once(trainer, pl_module, num_done=trainer.fit_loop.batch_idx + 1)
        pl_module.log("time/train_s", self._training_until - self._training_since, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the validation problems."""
        self._evaluate(trainer, pl_module, "validate")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the test problems."""
        self._evaluate(trainer, pl_module, "test")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the problems to predict."""
        self._evaluate(trainer, pl_module, "predict")

    def on_exception(self, trainer: Trainer, pl_module: PolicyModule, exception: BaseException) -> None:  # type: ignore[override]
        """Leave no engine behind."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:  # type: ignore[override]
        """Leave no engine behind; one that only evaluated may be asked again."""
        if stage == "fit":
            self._close()

    def state_dict(self) -> dict[str, Any]:
        """What is logged of the current rollout and stands in no other part of a checkpoint."""
        return {"gap": self._sync.gap, "sync_s": self._sync.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it, for runs that are resumed amid a rollout."""
        self._sync.gap, self._sync.seconds = state_dict["gap"], state_dict["sync_s"]

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, checkpoint: dict[str, Any]
    ) -> None:
        """Wait for the rollout that is under way, whose weights no later run has, and store it."""
        rollout = self._finish_ahead(trainer)
        if self._ahead is not None and rollout is not None:
            checkpoint["rollout_ahead"] = {"index": self._ahead[0], **to_state(rollout)}
        elif self._stored_ahead is not None:  # of the checkpoint that this run was resumed from
            checkpoint["rollout_ahead"] = self._stored_ahead

    def on_load_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep a stored rollout until its epoch begins."""
        self._stored_ahead = checkpoint.get("rollout_ahead")

    def _evaluate(self, trainer: Trainer, pl_module: PolicyModule, stage: EvalStage) -> None:
        if self._ahead is not None:
            self._ahead[1].exception()  # wait: the engine does one thing at a time
        datamodule = _datamodule(trainer)
        problems, prompts = datamodule.eval_prompts(stage)
        datamodule.fill(stage, self._sample(trainer, pl_module, problems, prompts, self.eval_sampling))

    def _sample(
        self,
        trainer: Trainer,
        pl_module: PolicyModule,
        problems: Sequence[Problem],
        prompts: Sequence[Prompt],
        sampling: Sampling,
    ) -> Rollout:
        """A rollout of the current weights; once more with fresh engines when the engine of any rank fails.

        Raises:
            EngineError: the fresh ones failed, too; in `fit` a checkpoint has been saved.
        """
        for is_last_attempt in (False, True):
            rollout = None
            if self._sync.refresh(trainer, pl_module, prompts, sampling):
                try:
                    rollout = self._collect(trainer.global_step, problems, prompts, sampling)
                except EngineError as error:
                    logger.warning("%s", error)
            if trainer.strategy.reduce_boolean_decision(rollout is not None):
                break
            self._sync.restart()
            if is_last_attempt:
                raise EngineError(f"the rollout engine failed twice; {_save_checkpoint(trainer)}")
            logger.warning("starting the rollout engine afresh")
        assert rollout is not None
        return rollout

    def _collect(
        self, version: int, problems: Sequence[Problem], prompts: Sequence[Prompt], sampling: Sampling
    ) -> Rollout:
        return replace(collect(self.engine, self.reward, problems, prompts, sampling), version=version)

    def _start_ahead(self, trainer: Trainer, pl_module: PolicyModule, index: int) -> None:
        """Begin the next rollout with the weights as they are."""
        problems, prompts = _datamodule(trainer).rollout_prompts(index)
        if self._sync.refresh(trainer, pl_module, prompts, self.sampling):
            step, device = trainer.global_step, pl_module.device

            def collect_there() -> Rollout:
                if device.type == "cuda":
                    torch.cuda.set_device(device)  # every thread starts with the first
                return self._collect(step, problems, prompts, self.sampling)

            self._ahead = index, self._thread.submit(collect_there)
        else:
            self._sync.restart()  # sampled when its epoch begins

    def _take_ahead(self, trainer: Trainer, index: int) -> Rollout | None:
        """The rollout that was begun an epoch ago; None when there is none, or the engine of any rank failed."""
        stored, self._stored_ahead = self._stored_ahead, None
        if stored is not None and stored["index"] == index:
            problems, prompts = _datamodule(trainer).rollout_prompts(index)
            return from_state(stored, problems, prompts, trainer.global_rank, trainer.world_size)
        if self._ahead is None or self._ahead[0] != index:
            return None
        rollout = self._finish_ahead(trainer)
        self._ahead = None
        if rollout is None:
            self._sync.restart()
        return rollout

    def _finish_ahead(self, trainer: Trainer) -> Rollout | None:
        """Wait for the rollout that is under way; None when there is none, or the engine of any rank failed."""
        if self._ahead is None:
            return None
        rollout = None
        try:
            rollout = self._ahead[1].result()
        except EngineError as error:
            logger.warning("%s", error)
        return rollout if trainer.strategy.reduce_boolean_decision(rollout is not None) else None

    def _close(self) -> None:
        """Close the engine, once the thread that samples ahead has let go of it."""
        if self._ahead is not None:
            self._ahead[1].exception()
            self._ahead = None
        self._sync.restart()

    def _log_once(self, trainer: Trainer, pl_module: PolicyModule, num_done: int) -> None:
        """Log the current rollout, of which `num_done` steps have been made, unless this process has done so."""
        if self._logged_epoch == trainer.current_epoch:
            return
        self._logged_epoch = trainer.current_epoch
        self._training_since = self._training_until = time.perf_counter()
        rollout = _datamodule(trainer).buffers["fit"].rollout
        pl_module.log_rollout(rollout)
        num_tokens = sum(len(completion.token_ids) for completion in rollout.completions)
        values = {
            "rollout/age": float(trainer.global_step - num_done - rollout.version),
            "rollout/logprob_gap": self._sync.gap,
            "time/sync_s": self._sync.seconds,
            "time/generate_s": rollout.generate_s,
            "time/score_s": rollout.score_s,
            "time/generated_tokens_per_s": num_tokens / rollout.generate_s,
        }
        for tag, value in values.items():
            pl_module.log(tag, value, sync_dist=True, **ONCE)


def _check_trainer(trainer: Trainer) -> None:
    """Refuse Trainer flags that would do nothing or the wrong thing here."""
    if trainer.gradient_clip_val:
        raise ValueError("trainer.gradient_clip_val: set model.max_grad_norm instead")
    if trainer.accumulate_grad_batches != 1:
        raise ValueError("trainer.accumulate_grad_batches: set model.prompts_per_micro_batch instead")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):
        raise ValueError(f"trainer.strategy: {type(trainer.strategy).__name__} is not supported; take ddp or fsdp2")
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision is {trainer.precision}, must be 32-true or bf16-mixed: weights and optimizer stay in "
            "float32, because half precision rounds away updates as small as a learning rate of 5e-6 makes them"
        )


def _datamodule(trainer: Trainer) -> PromptDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, PromptDataModule), "RolloutCallback needs a PromptDataModule"
    return datamodule


def _save_checkpoint(trainer: Trainer) -> str:
    """Save the run where `--ckpt_path last` finds it; says so, or why not."""
    directory = getattr(trainer.checkpoint_callback, "dirpath", None)
    if not trainer.training or directory is None:
        return "no checkpoint was saved"
    path = Path(directory) / "last.ckpt"
    trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()  # this epoch's; still those of the epoch before
    trainer.save_checkpoint(path)
    return f"the run can be continued from {path}"


def _seed_global_generators(seed: int) -> None:
    """Make global randomness, which user code may draw from, a function of the rollout: a resume then repeats it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
