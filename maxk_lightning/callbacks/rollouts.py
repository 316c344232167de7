"""The generation callback: before every epoch it refreshes the rollout that the epoch is about."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer

from maxk_lightning.callbacks.checks import (
    check_attention,
    check_behaviours,
    check_checkpoints,
    check_options,
    check_overlap,
    check_told,
    check_trainer,
)
from maxk_lightning.callbacks.monitors import check_monitors, step_plateau
from maxk_lightning.callbacks.realised import log_realised
from maxk_lightning.callbacks.rescue import saved, stop
from maxk_lightning.callbacks.reward_parts import log_parts
from maxk_lightning.callbacks.rollout_values import rollout_values
from maxk_lightning.datamodule import EvalStage, PromptDataModule
from maxk_lightning.module import ONCE, PolicyModule
from maxk_lightning.objectives import Staged, check_group_size, told_ks
from maxk_lightning.rewards import Reward, UnitTestReward, WeightedReward
from maxk_lightning.rewards.configured import as_reward, configured_reward
from maxk_lightning.rollouts import Allocation, Replay, RolloutEngine, TransformersEngine
from maxk_lightning.rollouts.ages import Ages, ages_of
from maxk_lightning.rollouts.allocation import Allocator, pilot_of
from maxk_lightning.rollouts.ranks import ranks_of
from maxk_lightning.rollouts.refill import Further
from maxk_lightning.rollouts.replay import ReplayBuffer
from maxk_lightning.rollouts.rollout import Order, Rollout, Samples
from maxk_lightning.rollouts.sampler import Sampler
from maxk_lightning.rollouts.weight_sync import Weights
from maxk_lightning.seeds import derive_seed
from maxk_lightning.selection import parse_selector
from maxk_lightning.types import Sampling

logger = logging.getLogger(__name__)


class RolloutCallback(Callback):
    """Orders a rollout when an epoch begins, and hands it to the dataloader; the `Sampler` does the rest."""

    def __init__(
        self,
        engine: RolloutEngine = TransformersEngine(),  # noqa: B008  (loads nothing before its first use)
        reward: Reward | str = UnitTestReward(),  # noqa: B008
        sampling: Sampling = Sampling(),  # noqa: B008
        eval_sampling: Sampling = Sampling(num_completions=32),  # noqa: B008
        rollouts_ahead: int = 0,
        max_age: int | None = None,
        max_logprob_gap: float = 0.2,
        rewards: list[WeightedReward | Reward | str] | None = None,
        eval_reward: Reward | str | None = None,
        select: str | None = None,
        replay: Replay | None = None,
        allocation: Allocation | None = None,
    ) -> None:
        """Choose the parts.

        Args:
            engine: Samples completions.
            reward: Scores them: a class with `score`, or the import path of a function with TRL's signature
                (`maxk_lightning.rewards.FunctionReward` says which arguments it gets).
            sampling: Of training rollouts; the paper's defaults.
            eval_sampling: Of validation, test and predict.
            rollouts_ahead: Number of further rollouts to sample and score, with older weights, while this one trains.
                They are off-policy, which losses with ratios and off-policy objectives correct for; `rollout/age_max`
                says how old they are, at most `rollouts_ahead` times the optimizer steps of a rollout. No group is
                dropped for being slow. Checkpoints hold the rollouts that were begun, so a resumed run continues
                exactly.
                Above 1: with `VLLMServerEngine` training does not wait for a slow rollout, and the age of each one
                depends on timing; other engines take turns, and every rollout is as old as it may be. Not with an
                engine on the GPU that trains, where each would wait for the other: take `VLLMServerEngine`.
            max_age: Largest age of a rollout: optimizer steps from the weights that it is begun with to those that
                training on it begins with. A rollout is not begun earlier, so the bound also holds for its oldest token
                where weights are pushed in flight. None: as large as `rollouts_ahead` allows.
            max_logprob_gap: Stop when, right after a weight sync, the log-probs of engine and trainer differ by more
                than this on average (nats per token). With bfloat16 on one side 0.05 was seen on a tiny policy; with
                float32 on both sides they differ by less than 1e-5, and 1e-4 is a good bound.
            rewards: Several rewards instead of `reward`, whose weighted sum is trained on: import paths, classes, or
                `{reward: ..., weight: 0.5, name: ...}`. A completion that one leaves out (None) is judged by the
                others. Mean and spread of each one are logged.
            eval_reward: Scores the samples of validation, test, predict and `evaluate`; None: as `reward` or `rewards`.
                If another reward than the trained one chooses the best checkpoint, it shows when that one is gamed.
            select: A selector, as in `evaluate --select`, such as `public+agreement`: validation and test log
                `realised_max_at_k/K`, the mean reward of the one of K samples that it chooses.
            replay: Mix groups of earlier rollouts into each one; None: none. Their losses are corrected by the
                log-probs that they were drawn with, as those of `rollouts_ahead` are. Objectives with ratios see the
                whole drift with `model.old_logprobs: engine`.
            allocation: Give prompts different numbers of completions, by the rewards of a pilot; the mean is that of
                `sampling`. None: all get the same number. Not with `data.refill`. `train/max_at_k/K` is then over the
                prompts that got K completions, the harder ones for a large K. A reward that compares the completions of
                a prompt sees the pilot together, and each later completion alone.

        Raises:
            ValueError: a reward or selector cannot be had, `sampling.top_p` is not 1, a bound is not positive, or
                options exclude each other.
        """
        check_options(engine, sampling, rollouts_ahead, max_age, max_logprob_gap)
        self.engine = engine
        self.reward = configured_reward(reward, rewards)
        self.eval_reward = self.reward if eval_reward is None else as_reward(eval_reward, "rollout.eval_reward")
        self.selector = None if select is None else parse_selector(select, self.eval_reward, "rollout.select")
        self.sampling = sampling
        self.eval_sampling = eval_sampling
        self.rollouts_ahead = rollouts_ahead
        self.max_age = max_age
        self.allocation = allocation
        self.replay = replay
        self.replayed: ReplayBuffer | None = None
        "Groups that may be replayed, and those that are; None: without `replay`."
        self._stored_replay: dict[str, Any] = {}  # of the checkpoint that this run was resumed from
        self.sampler = Sampler(engine, self.reward, max_logprob_gap)
        self._ages = Ages(0.0, 0)  # ages of the current rollout when training on it began
        self._replayed_ages: list[int] = []  # likewise, of the groups that are replayed
        self._logged_epoch: int | None = None
        self._training_since = self._training_until = 0.0

    def setup(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:  # type: ignore[override]
        """Begin afresh, after `check`."""
        data = _datamodule(trainer)
        self.check(trainer, pl_module, data, stage)
        self.sampler.reset()
        if stage == "fit":
            data.told_ks = told_ks(pl_module.objective)
        if stage == "fit" and self.replay is not None:
            self.replayed = ReplayBuffer(self.replay, data.prompts_per_rollout, data.seed)
        self._logged_epoch = None

    def check(self, trainer: Trainer, module: PolicyModule, data: PromptDataModule, stage: str) -> None:
        """Refuse what cannot work together before anything expensive starts.

        Raises:
            ValueError: a Trainer flag that would do nothing or the wrong thing, an objective that cannot work with
                groups of this size, or a metric to wait for that will not be there.
        """
        if stage == "fit":
            check_trainer(trainer)
            check_checkpoints(trainer)
            check_told(module.objective, data.template)
            if self.allocation is not None and data.refill:
                raise ValueError("rollout.allocation and data.refill exclude each other")
            check_attention(module.attn_implementation, trainer.strategy.root_device)
            if self.rollouts_ahead:
                check_overlap(self.engine, trainer.strategy.root_device)
            check_group_size(module.objective, self.sampling.num_completions)
            check_behaviours(module.objective, self.reward)
            if self.allocation is not None:
                self.allocation.check(self.sampling, module.objective)
            check_monitors(
                trainer,
                module,
                data,
                self.eval_sampling.num_completions,
                self.eval_reward,
                selects=self.selector is not None,
            )
            if isinstance(module.objective, Staged) and (trainer.max_epochs or 0) < 1:
                raise ValueError("model.objective: a Staged objective needs trainer.max_epochs, to know its progress")

    def on_train_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Continue within the rollout that the checkpoint of a resumed run holds.

        Raises:
            ValueError: the optimizer steps left in it would not be those that this configuration makes.
        """
        data = _datamodule(trainer)
        if self.replayed is not None:
            self.replayed.load_state(self._stored_replay)
        elif num_dropped := len(self._stored_replay.get("kept", [])):
            logger.warning(
                "the checkpoint holds %d groups to replay, which are dropped without rollout.replay", num_dropped
            )
        self._stored_replay = {}
        stored = self.sampler.take_current()
        if stored is None:
            return
        if stored["schedule"] != data.schedule:
            raise ValueError(
                f"data: the checkpoint was saved within a rollout with {stored['schedule']}, which cannot continue "
                f"with {data.schedule}; change these at the end of a rollout"
            )
        orders = partial(data.order, stored["index"], self.sampling)
        rollout = self.sampler.restore(stored, orders, ranks_of(trainer))
        self._serve(trainer, pl_module, rollout, stored["index"], stored["num_done"])
        pl_module.guard.spreads = stored["spreads"]
        if (stored["old_logprobs"] is None) != (pl_module.old is None):
            raise ValueError("model.old_logprobs: the checkpoint was saved within a rollout with another choice")
        if pl_module.old is not None:
            pl_module.old.load_state(data.buffers["fit"].steps, stored["old_logprobs"], pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score this epoch's rollout, or take the one that was sampled ahead."""
        data, ranks = _datamodule(trainer), ranks_of(trainer)
        index = trainer.current_epoch
        _seed_global_generators(derive_seed(data.seed, "rollout", index, ranks.rank))
        with saved(trainer):
            rollout = self.sampler.take(index, partial(data.order, index, self.sampling), ranks)
        if rollout is None:
            rollout = self._sample(trainer, pl_module, self._order(data, index), self._further(data, pl_module, index))
        if self.replayed is not None:
            self.replayed.draw(index, trainer.global_step, pl_module.objective_of(index))
        data.note(index, rollout.samples.groups)
        self._serve(trainer, pl_module, rollout, index)
        pl_module.note_old(data.buffers["fit"].steps)
        self._log_once(trainer, pl_module)
        if self.rollouts_ahead:
            self._sample_ahead(trainer, pl_module, num_done=0)
        else:
            self.sampler.sleep()
        self._training_since = time.perf_counter()

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, batch: Samples, batch_idx: int
    ) -> None:
        """Log a rollout that a resumed run found in the checkpoint, before the first step that is left of it."""
        seed = derive_seed(_datamodule(trainer).seed, "step", trainer.global_step, trainer.global_rank)
        _seed_global_generators(seed)
        self._log_once(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, *_: object
    ) -> None:
        """Remember when the last step ended: a validation may follow in the same epoch. Stop a run that diverged."""
        self._training_until = time.perf_counter()
        ranks = ranks_of(trainer)
        self.sampler.advance(ranks)
        if getattr(self.engine, "in_flight_weight_updates", False):
            self.sampler.push(_weights(trainer, pl_module), ranks)
        if pl_module.guard.is_exhausted and not trainer.is_last_batch:  # see `RolloutCheckpoint`
            stop(trainer, pl_module)
        self._sample_ahead(trainer, pl_module, num_done=_num_done(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Log how far the policy moved in the PPO iterations, and how long they took, or what a resumed run made."""
        self._log_once(trainer, pl_module)
        for tag, spread in _drift(pl_module.guard.spreads, len(_datamodule(trainer).buffers["fit"].steps)).items():
            pl_module.log(tag, spread, **ONCE)
        pl_module.log("time/train_s", self._training_until - self._training_since, sync_dist=True)
        if self.replayed is not None and self.sampler.current is not None:
            objective = pl_module.objective_of(trainer.current_epoch)
            self.replayed.keep(self.sampler.current, objective, ranks_of(trainer))
        pl_module.guard.end_rollout()
        if pl_module.guard.is_exhausted:
            stop(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the validation problems."""
        self._evaluate(trainer, pl_module, "validate")

    def on_validation_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Let a schedule that waits for validations see this one."""
        step_plateau(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the test problems."""
        self._evaluate(trainer, pl_module, "test")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Sample and score the problems to predict."""
        self._evaluate(trainer, pl_module, "predict")

    def on_exception(self, trainer: Trainer, pl_module: PolicyModule, exception: BaseException) -> None:  # type: ignore[override]
        """Leave no engine behind."""
        self.sampler.close()

    def teardown(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:  # type: ignore[override]
        """Leave no engine behind; one that only evaluated may be asked again."""
        if stage == "fit":
            self.sampler.close()

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the rollouts that no later run could sample again: the one ahead, and in an epoch this one's."""
        loop: Any = trainer.fit_loop
        current = None
        if loop.epoch_progress.current.started != loop.epoch_progress.current.processed:
            data, old = _datamodule(trainer), pl_module.old
            current = {
                "index": trainer.current_epoch,
                "num_done": _num_done(trainer),
                "schedule": data.schedule,
                "spreads": pl_module.guard.spreads,
                "old_logprobs": old and old.state(data.buffers["fit"].steps, ranks_of(trainer)),
            }
        checkpoint["rollouts"] = self.sampler.state(ranks_of(trainer), current)
        if self.replayed is not None:
            checkpoint["replay"] = self.replayed.state()

    def on_load_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: PolicyModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep stored rollouts until their epochs begin."""
        self.sampler.load_state(checkpoint.get("rollouts", {}))
        self._stored_replay = checkpoint.get("replay", {})

    def _sample_ahead(self, trainer: Trainer, module: PolicyModule, num_done: int) -> None:
        """Begin the further rollouts that may be sampled from the current weights.

        Args:
            trainer: Trainer of the run.
            module: Holds the policy.
            num_done: Optimizer steps that have been made on the current rollout.
        """
        data, ranks, current = _datamodule(trainer), ranks_of(trainer), trainer.current_epoch
        end = current + 1 + self.rollouts_ahead
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            end = min(end, trainer.max_epochs)
        num_steps = len(data.buffers["fit"])
        for index in range(max(self.sampler.last_begun or 0, current) + 1, end):
            age = (index - current) * num_steps - num_done
            is_too_early = self.max_age is not None and age > self.max_age
            if is_too_early or (getattr(self.engine, "runs_apart", False) and not self.sampler.is_free):
                return
            further = self._further(data, module, index)
            if not self.sampler.begin(self._order(data, index), _weights(trainer, module), ranks, further):
                return

    def _order(self, data: PromptDataModule, index: int) -> Order:
        return data.order(index, pilot_of(self.sampling, self.allocation))

    def _further(self, data: PromptDataModule, module: PolicyModule, index: int) -> Further | None:
        """What is sampled of a rollout after its order."""
        objective = module.objective_of(index)
        if self.allocation is not None:
            return Allocator(index=index, allocation=self.allocation, sampling=self.sampling, objective=objective)
        return data.refill_of(index, self.sampling, objective)

    def _evaluate(self, trainer: Trainer, pl_module: PolicyModule, stage: EvalStage) -> None:
        self.sampler.finish(ranks_of(trainer))
        data = _datamodule(trainer)
        order = data.eval_order(stage, self.eval_sampling)
        rollout = self._sample(trainer, pl_module, order, reward=self.eval_reward)
        data.buffers[stage].fill(rollout)
        if stage != "predict":
            prefix = "val" if stage == "validate" else "test"
            log_parts(pl_module, prefix, self.eval_reward, rollout.samples, ranks_of(trainer))
            if self.selector is not None:
                log_realised(pl_module, prefix, self.selector, rollout.samples, data.seed, ranks_of(trainer))

    def _sample(
        self,
        trainer: Trainer,
        pl_module: PolicyModule,
        order: Order,
        further: Further | None = None,
        reward: Reward | None = None,
    ) -> Rollout:
        """A rollout of the current weights.

        Raises:
            EngineError: the engine failed twice; in `fit` a checkpoint has been saved.
            RankError: the reward or the engine of a rank raised something else; likewise.
        """
        with saved(trainer):
            return self.sampler.sample(order, _weights(trainer, pl_module), ranks_of(trainer), further, reward)

    def _serve(self, trainer: Trainer, module: PolicyModule, rollout: Rollout, index: int, num_done: int = 0) -> None:
        """Make a rollout the one that is trained on, of which `num_done` steps have been made."""
        self.sampler.current = rollout
        module.guard.spreads = []
        drawn = [] if self.replayed is None else self.replayed.drawn
        replayed = [kept.group for kept in drawn]
        _datamodule(trainer).buffers["fit"].fill(rollout, index, num_done, module.idle, replayed)
        begun_at = trainer.global_step - num_done
        self._ages = ages_of(rollout, begun_at, ranks_of(trainer))
        self._replayed_ages = [begun_at - kept.version for kept in drawn]
        if module.old is not None:
            module.old.begin(rollout, max(self._ages.largest, *self._replayed_ages, 0))

    def _log_once(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        """Log the current rollout unless this process has done so."""
        rollout = self.sampler.current
        if self._logged_epoch == trainer.current_epoch or rollout is None:
            return
        self._logged_epoch = trainer.current_epoch
        self._training_since = self._training_until = time.perf_counter()
        pl_module.log_samples(rollout.samples)
        log_parts(pl_module, "train", self.reward, rollout.samples, ranks_of(trainer))
        objective = pl_module.objective_of(trainer.current_epoch)
        values = rollout_values(rollout, objective, self._ages, self._replayed_ages, ranks_of(trainer))
        values["rollout/passed_over"] = float(_datamodule(trainer).num_passed_over(trainer.current_epoch))
        for tag, value in values.items():
            pl_module.log(tag, value, sync_dist=True, **ONCE)


def rollout_callback(trainer: Trainer) -> RolloutCallback | None:
    """Find the rollout callback of a Trainer, for callbacks that report on its rollouts; None: it has none."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, RolloutCallback)), None)  # type: ignore[attr-defined]


def _drift(spreads: Sequence[float], num_steps: int) -> dict[str, float]:
    """Mean spread of log rho over the first and over the last PPO iteration, of `num_steps` optimizer steps each."""
    parts = {"first": spreads[:num_steps], "last": spreads[-num_steps:]}
    return {f"train/log_ratio_std_{name}": sum(part) / len(part) for name, part in parts.items()}


def _weights(trainer: Trainer, module: PolicyModule) -> Weights:
    """The current policy, to be proved in the precision that steps compute in: hooks run outside of it."""
    return replace(module.weights(), forward_context=trainer.precision_plugin.forward_context)


def _num_done(trainer: Trainer) -> int:
    """Optimizer steps that have been made on the current rollout, also before a resume."""
    loop: Any = trainer.fit_loop.epoch_loop
    return int(loop.batch_progress.current.processed)


def _datamodule(trainer: Trainer) -> PromptDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, PromptDataModule), "RolloutCallback needs a PromptDataModule"
    return datamodule


def _seed_global_generators(seed: int) -> None:
    """Make global randomness, which user code may draw from, a function of the rollout: a resume then repeats it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
