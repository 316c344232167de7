"""`data.refill`: further prompts until enough groups have credit, whatever else a run does."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.data import Builtin, Curriculum, PromptStream
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import MaxAtK, Objective, Staged
from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.rollout import Group
from maxk_lightning.types import Problem, Sampling, Score
from tests.support.fakes import LengthReward, SparseReward
from tests.support.runs import Run, assert_same, scalars
from tests.support.training import Fit, fit

SAMPLING = Sampling(num_completions=4, max_new_tokens=8)
NUM_PROMPTS = 4
NUM_PROBLEMS = 24
NUM_ROLLOUTS = 4


class Equal(LengthReward):
    """Gives everything the same reward."""

    def reward(self, text: str) -> float | None:
        return 0.25


class Different(LengthReward):
    """Gives every sample of a group another reward."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [[Score(reward=sample / 8, verdicts=()) for sample in range(len(group))] for group in completions]


class Record(Callback):
    """What was sampled, trained on and logged in every rollout; saves amid the second and at its end."""

    def __init__(self) -> None:
        self.sampled: list[Sequence[Group]] = []
        self.trained: list[list[Group]] = []
        self.versions: list[int] = []
        self.logs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: PolicyModule, *args: Any) -> None:  # type: ignore[override]
        if trainer.global_step == 6:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "amid.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        rollout = next(c for c in trainer.callbacks if isinstance(c, RolloutCallback)).sampler.current  # type: ignore[attr-defined]
        assert rollout is not None
        self.sampled.append(rollout.samples.groups)
        self.versions.append(rollout.version)
        buffer = trainer.datamodule.buffers["fit"]  # type: ignore[attr-defined]
        self.trained.append([group for share in buffer._shares for group in (*share.groups, *share.idle)])
        self.logs.append({tag: float(value) for tag, value in trainer.callback_metrics.items()})
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "end.ckpt")


def _fit(
    policy: str,
    root: Path,
    reward: Reward,
    objective: Objective = MaxAtK(k=2),  # noqa: B008
    kl_coef: float = 0.0,
    ahead: int = 0,
    ckpt_path: Path | None = None,
    **data: Any,
) -> tuple[Fit, Record]:
    record = Record()
    engine = TransformersEngine(policy)
    trained = fit(
        policy,
        root,
        epochs=NUM_ROLLOUTS,
        rollout=RolloutCallback(engine, reward, SAMPLING, rollouts_ahead=ahead),  # type: ignore[arg-type]
        callbacks=[record, ModelCheckpoint(root, save_top_k=0, every_n_epochs=100)],
        module={"objective": objective, "kl_coef": kl_coef, "optimizer": partial(torch.optim.Adam, lr=1e-3)},
        data={"train": Builtin("train", limit=NUM_PROBLEMS), "prompts_per_step": 2, "refill": 2, **data},
        ckpt_path=ckpt_path,
    )
    return trained, record


def _has_credit(group: Group) -> bool:
    """Of centred max@2, all samples scored: not every pair has the same best; three equal best of four have none."""
    return len({max(pair) for pair in combinations(group.rewards, 2)}) > 1


def _ids(groups: Sequence[Group]) -> list[str]:
    return [group.problem.id for group in groups]


@pytest.mark.parametrize(("kl_coef", "ahead"), [(0.0, 0), (0.1, 0), (0.0, 1)])
def test_a_rollout_is_refilled_and_trained_on_by_hand(
    random_policy: str, tmp_path: Path, kl_coef: float, ahead: int
) -> None:
    trained, record = _fit(random_policy, tmp_path, SparseReward(), kl_coef=kl_coef, ahead=ahead)
    stream = PromptStream(num_problems=NUM_PROBLEMS, seed=42)
    problems = trained.datamodule.problems["fit"]
    assert len({len(groups) for groups in record.sampled}) > 1
    for index, groups in enumerate(record.sampled):
        ordered = [problems[stream.index(NUM_PROMPTS * index + place)].id for place in range(NUM_PROMPTS)]
        assert _ids(groups)[:NUM_PROMPTS] == ordered
        assert len(set(_ids(groups))) == len(groups)
        credits_ = [_has_credit(group) for group in groups]
        sizes, expected = [NUM_PROMPTS], NUM_PROMPTS
        while sum(credits_[:expected]) < NUM_PROMPTS and len(sizes) <= 2:
            found = sum(credits_[:expected])
            wanted = next(
                size for size in range(1, 99) if size == NUM_PROMPTS or size * found >= (NUM_PROMPTS - found) * expected
            )
            sizes.append(wanted)
            expected += wanted
        assert len(groups) == expected
        with_credit = [group for group in groups if _has_credit(group)][:NUM_PROMPTS]
        without = [group for group in groups if not _has_credit(group)][: NUM_PROMPTS - len(with_credit)]
        chosen = [group for group in groups if group in with_credit or group in without]
        assert sorted(_ids(record.trained[index])) == sorted(_ids(chosen))
        logs = record.logs[index]
        assert logs["rollout/num_prompts"] == len(groups)
        assert logs["rollout/credit_fraction"] == pytest.approx(sum(credits_) / len(groups))
        rewards_PN = torch.tensor([group.rewards for group in groups])
        assert logs["train/reward"] == pytest.approx(float(rewards_PN.mean()))
        assert logs["train/max_at_k/4"] == pytest.approx(float(rewards_PN.amax(1).mean()))
        lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
        assert logs["train/completion_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert record.versions == ([0, 0, 4, 8] if ahead else [0, 4, 8, 12])  # also of what was refilled


def test_where_every_group_has_credit_nothing_more_is_sampled_and_nothing_changes(
    random_policy: str, tmp_path: Path
) -> None:
    off, _ = _fit(random_policy, tmp_path, Different(), refill=0)
    on, record = _fit(random_policy, tmp_path, Different(), refill=3)
    assert [len(groups) for groups in record.sampled] == [NUM_PROMPTS] * NUM_ROLLOUTS
    assert_same(on.weights, off.weights, "weights")


@pytest.mark.parametrize(("num_problems", "num_sampled"), [(NUM_PROBLEMS, 12), (7, 7)])
def test_without_any_credit_the_batches_or_the_problems_run_out(
    random_policy: str, tmp_path: Path, num_problems: int, num_sampled: int
) -> None:
    train = Builtin("train", limit=num_problems)
    _, record = _fit(random_policy, tmp_path, Equal(), train=train)
    whole, alone = record.sampled[0], record.trained[0]
    assert len(whole) == num_sampled
    assert sorted(_ids(alone)) == sorted(_ids(whole)[:NUM_PROMPTS])
    assert record.logs[0]["rollout/credit_fraction"] == 0.0
    assert record.logs[0]["train/zero_credit_fraction"] == 1.0


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_objective_in_force_decides(random_policy: str, tmp_path: Path, ahead: int) -> None:
    """Without a baseline equal rewards have credit, with one they have none."""
    staged = Staged([MaxAtK(k=2, baseline="none"), MaxAtK(k=2)], [0.0, 0.5])
    _, record = _fit(random_policy, tmp_path, Equal(), staged, ahead=ahead)
    assert [len(groups) for groups in record.sampled] == [4, 4, 12, 12]


@pytest.mark.parametrize(
    ("ahead", "curriculum"),
    [pytest.param(0, None, marks=pytest.mark.slow), (1, None), (1, Curriculum(floor=0.2))],
)
def test_a_run_resumes_amid_a_refilled_rollout_and_behind_it(
    random_policy: str, tmp_path: Path, ahead: int, curriculum: Curriculum | None
) -> None:
    limit = NUM_PROBLEMS if curriculum is None else 6
    data = {"curriculum": curriculum, "train": Builtin("train", limit=limit)}
    whole, record = _fit(random_policy, tmp_path, SparseReward(), ahead=ahead, **data)
    assert any(logs["rollout/passed_over"] > 0 for logs in record.logs) == (curriculum is not None)
    for name in ("amid", "end"):
        again, later = _fit(
            random_policy, tmp_path / name, SparseReward(), ahead=ahead, ckpt_path=tmp_path / f"{name}.ckpt", **data
        )
        assert_same(again.weights, whole.weights, name)
        num_left = len(later.sampled)
        assert num_left == {"amid": 3, "end": 2}[name]
        assert [_ids(groups) for groups in later.sampled] == [_ids(groups) for groups in record.sampled[-num_left:]]
        for ours, theirs in zip(later.logs, record.logs[-num_left:], strict=True):
            tags = [tag for tag in theirs if not tag.startswith("time/") and tag != "rollout/logprob_gap"]
            assert {tag: ours[tag] for tag in tags} == {tag: theirs[tag] for tag in tags}


def test_a_rollout_ahead_is_not_taken_up_by_a_run_of_another_size(random_policy: str, tmp_path: Path) -> None:
    _fit(random_policy, tmp_path, Equal(), ahead=1)
    checkpoint = tmp_path / "end.ckpt"
    with pytest.raises(ValueError, match="prompts are not those of this configuration"):
        _fit(random_policy, tmp_path, Equal(), ahead=1, prompts_per_rollout=6, ckpt_path=checkpoint)
    few = Builtin("train", limit=9)
    with pytest.raises(ValueError, match=r"data\.train: the rollout in the checkpoint has 12 prompts"):
        _fit(random_policy, tmp_path, Equal(), ahead=1, train=few, ckpt_path=checkpoint)


def test_drift_is_logged_by_ppo_iteration(random_policy: str, tmp_path: Path) -> None:
    spreads: list[float] = []

    class Spreads(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            spreads.append(float(trainer.callback_metrics["train/log_ratio_std"]))

    trained = fit(
        random_policy, tmp_path, epochs=1, callbacks=[Spreads()], data={"prompts_per_step": 2},
        module={"objective": MaxAtK(k=2)},
    )  # fmt: skip
    logged = {tag: float(value) for tag, value in trained.trainer.callback_metrics.items()}
    assert len(spreads) == 4
    assert logged["train/log_ratio_std_first"] == pytest.approx(sum(spreads[:2]) / 2)
    assert logged["train/log_ratio_std_last"] == pytest.approx(sum(spreads[2:]) / 2)
    assert logged["train/log_ratio_std_first"] < logged["train/log_ratio_std_last"]


def test_what_would_have_no_effect_is_refused(random_policy: str) -> None:
    with pytest.raises(ValueError, match=r"data\.refill is -1"):
        PromptDataModule(refill=-1)
    data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=8), prompts_per_rollout=8, refill=1)
    with pytest.raises(ValueError, match=r"data\.refill has no effect.*all 8 problems of data\.train"):
        data.setup("fit")
    data.setup("test")


OPTIONS = (
    "--config configs/tiny.yaml --trainer.max_epochs 3 --validate_before_fit false --trainer.enable_progress_bar false"
    " --trainer.check_val_every_n_epoch 2 --data.validation.limit 1 --data.prompts_per_rollout 4"
    " --data.prompts_per_step 2 --data.num_ppo_iterations 2 --data.refill 2 --model.old_logprobs trainer"
    " --model.objective MaxAtK --model.objective.k 4 --model.policy_loss CISPO --model.kl_coef 0"
    " --rollout.reward tests.support.fakes.SparseReward --rollout.sampling.max_new_tokens 16"
    " --rollout.eval_sampling.max_new_tokens 16 --rollout.eval_sampling.num_completions 8"
    " --checkpoint.every_n_epochs null --checkpoint.every_n_train_steps 3"
)


AHEAD = {
    "now": "0",
    "ahead": "1",
    "far": "4 --rollout.max_age 6 --rollout.replay.share 0.5",
    "curriculum": "1 --data.train.limit 6 --data.curriculum.floor 0.2",
    "allocated": "2 --data.refill 0 --rollout.allocation.pilot 5 --rollout.allocation.max_completions 12",
}


@pytest.fixture(scope="module", params=AHEAD.values(), ids=AHEAD)
def options(request: pytest.FixtureRequest) -> str:
    return f"{OPTIONS} --rollout.rollouts_ahead {request.param}"


@pytest.fixture(scope="module")
def one(options: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("one"), options).finish()
    if AHEAD["allocated"] in options:
        assert max(scalars(run.root)["rollout/completions_max"].values()) > 8
    else:
        assert max(scalars(run.root)["rollout/num_prompts"].values()) > 4
    assert (AHEAD["curriculum"] in options) == any(scalars(run.root)["rollout/passed_over"].values())
    return run


def _state(run: Run) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run.checkpoint("last"), weights_only=True)
    return state


@pytest.mark.slow
def test_a_killed_run_is_bit_for_bit_the_undisturbed_one(options: str, one: Run, tmp_path: Path) -> None:
    killed = Run(tmp_path, options).start_and_kill(delay_s=0.3).finish("--ckpt_path", "last")
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(_state(killed)[key], _state(one)[key], key)
    whole = scalars(one.root)
    for tag, points in scalars(killed.root).items():
        assert points.items() <= whole[tag].items(), tag


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_one(options: str, one: Run, tmp_path: Path) -> None:
    two = Run(tmp_path, f"{options} --trainer.strategy ddp --trainer.devices 2")
    two.start_and_kill().finish("--ckpt_path", "last")
    for name, weight in _state(one)["state_dict"].items():
        # As in test_ranks: sums in another order, magnified by Adam where a gradient is as small as its eps.
        torch.testing.assert_close(_state(two)["state_dict"][name], weight, atol=2e-5, rtol=0.0)
    ours, theirs = scalars(two.root), scalars(one.root)
    for tag in ("rollout/num_prompts", "rollout/credit_fraction", "train/reward", "train/max_at_k/8"):
        assert ours[tag] == pytest.approx(theirs[tag]), tag
