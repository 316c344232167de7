"""The generation callback: age of rollouts, proof of the weights, and what happens when an engine fails.

The engines here are real ones that are made to fail or to lie at a chosen moment.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.callbacks.checks import check_overlap
from maxk_lightning.data import Builtin
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import DistinctMaxAtK, MaxAtK, WeightedObjectives
from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import (
    Allocation,
    EngineError,
    Replay,
    RolloutEngine,
    TransformersEngine,
    VLLMEngine,
    VLLMServerEngine,
)
from maxk_lightning.rollouts.collect import collect
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Order, Rollout
from maxk_lightning.rollouts.stored import from_state, to_state
from maxk_lightning.types import Completion, Prompt, Sampling
from tests.support.fakes import LengthReward
from tests.support.training import fit

SAMPLING = Sampling(num_completions=4, max_new_tokens=10)
NUM_ROLLOUTS = 4
Weights = dict[str, Tensor]


class Recording(RolloutCallback):
    """Keeps what it was asked for."""

    def __init__(self, engine: RolloutEngine, **options: Any) -> None:
        super().__init__(engine, LengthReward(), SAMPLING, **options)
        self.rollouts: list[Rollout] = []
        self.ages: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Note the rollout of the epoch, and its age."""
        super().on_train_epoch_start(trainer, pl_module)
        assert self.sampler.current is not None
        self.rollouts.append(self.sampler.current)
        self.ages.append(trainer.global_step - self.rollouts[-1].version)


class Stopping(Recording):
    """Saves a checkpoint at the end of the second epoch, and breaks off in the third."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Break off."""
        if trainer.current_epoch == 2:
            raise ZeroDivisionError
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Save."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "early.ckpt")


class UnreliableEngine:
    """A TransformersEngine some of whose calls of `generate` or `load_weights` fail; closing it loses the weights."""

    def __init__(self, policy: str, fail_at: Iterable[int] = (), stale: bool = False) -> None:
        self.policy = policy
        self.fail_at = set(fail_at)
        self.stale = stale
        self.calls = 0
        self.closed = 0
        self.inner = TransformersEngine(policy)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._count()
        if not self.stale or version == 0:
            self.inner.load_weights(named_tensors, version)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        self._count()
        return self.inner.generate(prompts, sampling)

    def sleep(self) -> bool:
        return False

    def close(self) -> None:
        self.closed += 1
        self.inner = TransformersEngine(self.policy)

    def _count(self) -> None:
        self.calls += 1
        if self.calls in self.fail_at:
            raise EngineError(f"call {self.calls} failed")


def _fit(policy: str, root: Path, callback: RolloutCallback, ckpt_path: Path | None = None, **data: Any) -> Weights:
    """Weights after some rollouts of two prompts, two PPO iterations each."""
    trained = fit(
        policy,
        root,
        epochs=NUM_ROLLOUTS,
        rollout=callback,
        callbacks=[ModelCheckpoint(root, save_top_k=0, every_n_epochs=100)],
        module={"optimizer": partial(torch.optim.Adam, lr=1e-2)},
        data={"train": Builtin("train", limit=12), "prompts_per_rollout": 2, **data},
        ckpt_path=ckpt_path,
    )
    return trained.weights


def _assert_same(ours: Weights, theirs: Weights) -> None:
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.fixture(scope="module")
def undisturbed(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return _fit(random_policy, tmp_path_factory.mktemp("undisturbed"), Recording(TransformersEngine(random_policy)))


# Calls of a rollout: load_weights, generate (the test of the weights), generate.
@pytest.mark.parametrize("fail_at", [*(pytest.param([call], marks=pytest.mark.slow) for call in (1, 2, 3, 8)), [3, 9]])
def test_a_failed_engine_is_replaced_once_and_nothing_else_changes(
    random_policy: str, undisturbed: Weights, tmp_path: Path, fail_at: list[int]
) -> None:
    engine = UnreliableEngine(random_policy, fail_at)
    _assert_same(_fit(random_policy, tmp_path, Recording(engine)), undisturbed)
    assert engine.closed == len(fail_at) + 1  # and once at the end


def test_an_engine_that_fails_twice_ends_the_run_with_a_checkpoint(
    random_policy: str, undisturbed: Weights, tmp_path: Path
) -> None:
    engine = UnreliableEngine(random_policy, fail_at=[9, 12])  # the third rollout, and its second attempt
    with pytest.raises(EngineError, match=r"failed twice; the run can be continued from .*last\.ckpt"):
        _fit(random_policy, tmp_path, Recording(engine))
    assert engine.closed == 3  # after each failure, and on the way out
    resumed = Recording(TransformersEngine(random_policy))
    _assert_same(_fit(random_policy, tmp_path, resumed, tmp_path / "last.ckpt"), undisturbed)
    assert len(resumed.rollouts) == NUM_ROLLOUTS - 2


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_an_engine_with_old_weights_stops_the_run_however_it_evaluates(
    random_policy: str, tmp_path: Path, top_p: float
) -> None:
    """Validation comes after every rollout, so that its sampling is the one of each push but the first."""
    callback = Recording(
        UnreliableEngine(random_policy, stale=True),
        max_logprob_gap=1e-3,
        eval_sampling=Sampling(num_completions=2, max_new_tokens=10, top_p=top_p),
    )
    with pytest.raises(RuntimeError, match=r"differ from the trainer's by .* rollout\.max_logprob_gap allows 0\.001"):
        _fit(random_policy, tmp_path, callback, validation=Builtin("validation", limit=2))


def test_a_stored_rollout_carries_its_own_proof(random_policy: str, tmp_path: Path) -> None:
    """The gap of a rollout is that of the push it was sampled from, also where a validation pushed in between."""
    callback = Recording(TransformersEngine(random_policy))
    _fit(random_policy, tmp_path, callback, validation=Builtin("validation", limit=2))
    gaps = [rollout.logprob_gap for rollout in callback.rollouts]
    assert all(0 <= gap < 1e-5 for gap in gaps)
    order = Order(
        index=0,
        problems=[group.problem for group in callback.rollouts[1].samples.groups],
        prompts=[group.prompt for group in callback.rollouts[1].samples.groups],
        sampling=SAMPLING,
    )
    assert from_state(to_state(callback.rollouts[1], Ranks()), order, Ranks()) == callback.rollouts[1]


def test_rollouts_ahead_come_from_the_weights_before(random_policy: str, tmp_path: Path) -> None:
    callback = Recording(TransformersEngine(random_policy), rollouts_ahead=1)
    _fit(random_policy, tmp_path, callback)
    assert callback.ages == [0, 2, 2, 2]  # two optimizer steps per rollout
    assert [rollout.version for rollout in callback.rollouts] == [0, 0, 2, 4]
    initial = TransformersEngine(random_policy)
    initial.load_weights(load_model(random_policy).state_dict().items(), 0)
    for rollout in callback.rollouts[:2]:  # both were sampled by the initial policy
        groups = rollout.samples.groups
        problems, prompts = [group.problem for group in groups], [group.prompt for group in groups]
        order = Order(index=0, problems=problems, prompts=prompts, sampling=SAMPLING)
        again = collect(initial, LengthReward(), order)
        assert [group.completions for group in again.samples.groups] == [group.completions for group in groups]


def test_a_run_ahead_resumes_with_the_rollout_that_was_under_way(random_policy: str, tmp_path: Path) -> None:
    whole = Recording(TransformersEngine(random_policy), rollouts_ahead=1)
    weights = _fit(random_policy, tmp_path / "whole", whole)
    stopped = Stopping(TransformersEngine(random_policy), rollouts_ahead=1)
    with pytest.raises(ZeroDivisionError):
        _fit(random_policy, tmp_path / "stopped", stopped)
    resumed = Recording(TransformersEngine(random_policy), rollouts_ahead=1)
    _assert_same(_fit(random_policy, tmp_path / "resumed", resumed, tmp_path / "stopped" / "early.ckpt"), weights)
    assert resumed.ages == whole.ages[2:]
    assert [rollout.version for rollout in resumed.rollouts] == [2, 4]


class SavingAmid(Recording):
    """Saves a checkpoint amid the first rollout."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Save after the first step."""
        super().on_train_batch_end(*args)
        trainer: Trainer = args[0]
        if trainer.global_step == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "amid.ckpt")


@pytest.mark.parametrize("prompts_per_step", [1, 2])
def test_a_rollout_goes_on_with_the_optimizer_steps_it_was_begun_with(
    random_policy: str, tmp_path: Path, prompts_per_step: int
) -> None:
    """The checkpoint holds the old log-probs too, of the steps to come as well."""
    steps = {"prompts_per_step": prompts_per_step}
    undisturbed = _fit(random_policy, tmp_path, SavingAmid(TransformersEngine(random_policy)), **steps)
    resumed = Recording(TransformersEngine(random_policy))
    _assert_same(_fit(random_policy, tmp_path, resumed, tmp_path / "amid.ckpt", **steps), undisturbed)
    assert len(resumed.rollouts) == NUM_ROLLOUTS - 1
    with pytest.raises(ValueError, match="change these at the end of a rollout"):
        _fit(
            random_policy,
            tmp_path,
            Recording(TransformersEngine(random_policy)),
            tmp_path / "amid.ckpt",
            num_ppo_iterations=3,
            **steps,
        )


def test_an_engine_that_fails_while_ahead_samples_anew_from_the_current_weights(
    random_policy: str, tmp_path: Path
) -> None:
    engine = UnreliableEngine(random_policy, fail_at=[4])  # rollout 0 has three calls; the next one is the one ahead
    callback = Recording(engine, rollouts_ahead=1)
    _fit(random_policy, tmp_path, callback)
    assert callback.ages == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("ahead", "max_age", "versions"),
    [
        (2, None, [0, 0, 0, 2]),
        (3, None, [0, 0, 0, 0]),
        (3, 1, [0, 1, 3, 5]),
        (3, 3, [0, 0, 1, 3]),
        (1, 100, [0, 0, 2, 4]),
        (9, 5, [0, 0, 0, 1]),
    ],
)
def test_a_rollout_ahead_is_as_old_as_it_may_be(
    random_policy: str, tmp_path: Path, ahead: int, max_age: int | None, versions: list[int]
) -> None:
    callback = Recording(TransformersEngine(random_policy), rollouts_ahead=ahead, max_age=max_age)
    _fit(random_policy, tmp_path, callback)
    assert [rollout.version for rollout in callback.rollouts] == versions
    assert callback.ages == [2 * index - version for index, version in enumerate(versions)]


@pytest.mark.parametrize(
    "options",
    [
        {"rollouts_ahead": 3},
        {"rollouts_ahead": 3, "max_age": 3},
        {"replay": Replay(share=0.5)},
        {"rollouts_ahead": 3, "max_age": 3, "replay": Replay(share=0.5, max_age=9)},
        {"rollouts_ahead": 1, "replay": Replay(share=0.5), "allocation": Allocation(pilot=3, max_completions=6)},
    ],
    ids=str,
)
def test_a_run_resumes_with_all_that_was_sampled_before(
    random_policy: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    """From amid a rollout, and from the end of one."""
    whole = SavingAmid(TransformersEngine(random_policy), **options)
    weights = _fit(random_policy, tmp_path / "whole", whole)
    stopped = Stopping(TransformersEngine(random_policy), **options)
    with pytest.raises(ZeroDivisionError):
        _fit(random_policy, tmp_path / "stopped", stopped)
    for number, path in ((1, tmp_path / "whole" / "amid.ckpt"), (2, tmp_path / "stopped" / "early.ckpt")):
        resumed = Recording(TransformersEngine(random_policy), **options)
        _assert_same(_fit(random_policy, tmp_path / f"resumed {number}", resumed, path), weights)
        assert resumed.ages == whole.ages[number:]
        assert [r.samples for r in resumed.rollouts] == [r.samples for r in whole.rollouts[number:]]


def test_groups_of_earlier_rollouts_are_trained_on_again(random_policy: str, tmp_path: Path) -> None:
    """Both fresh groups of a rollout, and as many of those before; a replayed step differs from one without."""
    callback = Replaying(TransformersEngine(random_policy), replay=Replay(share=0.5, max_uses=1))
    weights = _fit(random_policy, tmp_path / "replay", callback)
    fresh = [[group.prompt.seed for group in rollout.samples.groups] for rollout in callback.rollouts]
    assert callback.trained[0] == fresh[0]  # nothing is kept yet
    assert [sorted(seeds) for seeds in callback.trained[1:]] == [
        sorted(fresh[index] + fresh[index - 1]) for index in range(1, NUM_ROLLOUTS)
    ]
    without = _fit(random_policy, tmp_path / "without", Recording(TransformersEngine(random_policy)))
    assert any(not torch.equal(weights[name], without[name]) for name in weights)


def test_groups_that_a_resumed_run_does_not_replay_are_counted(
    random_policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = Stopping(TransformersEngine(random_policy), replay=Replay(share=0.5))
    with pytest.raises(ZeroDivisionError):
        _fit(random_policy, tmp_path / "stopped", stopped)
    _fit(
        random_policy,
        tmp_path / "resumed",
        Recording(TransformersEngine(random_policy)),
        tmp_path / "stopped/early.ckpt",
    )
    assert re.search(r"holds [1-4] groups to replay, which are dropped without rollout.replay", caplog.text)


class Replaying(Recording):
    """Keeps the seeds of the groups of the first optimizer step of every rollout."""

    def __init__(self, engine: RolloutEngine, **options: Any) -> None:
        super().__init__(engine, **options)
        self.trained: list[list[int]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Note the first step."""
        super().on_train_batch_start(*args)
        if args[3] == 0:
            self.trained.append([group.prompt.seed for group in args[2].groups])


class ApartEngine(UnreliableEngine):
    """Samples apart from training, and is slow with the first rollout ahead: it waits to be let go on."""

    runs_apart = True

    def __init__(self, policy: str) -> None:
        super().__init__(policy)
        self.may_go_on = Event()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        if self.calls >= 3:  # load_weights, generate (the test of the weights), generate
            assert self.may_go_on.wait(60)
        return super().generate(prompts, sampling)


class LettingGoOn(Recording):
    """Lets the engine go on when the steps of the first rollout have been made."""

    def on_train_batch_end(self, *args: Any) -> None:
        if args[0].global_step == 2:
            assert self.sampler.last_begun == 1  # training has not waited for it
            self.engine.may_go_on.set()  # type: ignore[attr-defined]
        super().on_train_batch_end(*args)


def test_training_does_not_wait_for_an_engine_that_runs_apart(random_policy: str, tmp_path: Path) -> None:
    callback = LettingGoOn(ApartEngine(random_policy), rollouts_ahead=3)
    _fit(random_policy, tmp_path, callback)
    versions = [rollout.version for rollout in callback.rollouts]
    assert versions[:2] == [0, 0]
    assert versions[2] == 2  # younger than an engine that takes turns would have left it
    assert versions == sorted(versions)


def test_a_rollout_far_ahead_that_failed_is_sampled_anew_when_its_epoch_begins(
    random_policy: str, tmp_path: Path
) -> None:
    engine = UnreliableEngine(random_policy, fail_at=[5])  # rollout 0 has three calls, rollouts 1 and 2 one each
    callback = Recording(engine, rollouts_ahead=3)
    _fit(random_policy, tmp_path, callback)
    assert [rollout.version for rollout in callback.rollouts] == [0, 0, 4, 4]
    assert engine.closed == 2


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout\.engine\.sleep_while_training: with rollouts_ahead"):
        RolloutCallback(VLLMEngine(sleep_while_training=True), rollouts_ahead=1)
    with pytest.raises(ValueError, match=r"rollout\.max_logprob_gap is 0"):
        RolloutCallback(max_logprob_gap=0.0)
    with pytest.raises(ValueError, match=r"rollout\.rollouts_ahead is -1, must be 0 or more"):
        RolloutCallback(rollouts_ahead=-1)
    for options in ({"max_age": 2}, {"max_age": 0, "rollouts_ahead": 1}):
        with pytest.raises(ValueError, match=r"rollout\.max_age is \d, must be positive, with rollout\.rollouts_ahead"):
            RolloutCallback(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kv_cache_gib, not both"):
        VLLMEngine(kv_cache_gib=1.0, gpu_memory_utilization=0.5)
    with pytest.raises(ValueError, match=r"rollout\.engine\.max_num_seqs is 0"):
        VLLMEngine(max_num_seqs=0)


def test_an_objective_that_counts_behaviours_needs_a_reward_that_tells_them(random_policy: str, tmp_path: Path) -> None:
    objective = WeightedObjectives([MaxAtK(k=2), DistinctMaxAtK(k=2)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"model\.objective: .* counts behaviours, which the reward \(LengthReward\)"):
        fit(random_policy, tmp_path, module={"objective": objective})


def test_sampling_ahead_is_for_engines_that_do_not_share_the_gpu() -> None:
    here: list[RolloutEngine] = [VLLMEngine(kv_cache_gib=1.0), TransformersEngine()]
    elsewhere: list[RolloutEngine] = [VLLMServerEngine(url="http://127.0.0.1:1"), TransformersEngine(device="cpu")]
    for engine in here:
        with pytest.raises(ValueError, match=r"rollout\.rollouts_ahead: .*Engine samples on the GPU that trains"):
            check_overlap(engine, torch.device("cuda"))
        check_overlap(engine, torch.device("cpu"))
    for engine in elsewhere:
        check_overlap(engine, torch.device("cuda"))
