"""Any number of processes, however their weights are held, train like one; also when they are killed and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from maxk_lightning.checkpoints import is_sharded, read_sharded
from maxk_lightning.commands.export import export
from maxk_lightning.policy import resolve_policy
from tests.support.runs import Run, assert_same, scalars

# Uneven everywhere: steps of 3 prompts in micro-batches of 1, so that the second of two ranks has one group and one
# empty micro-batch; one validation problem. Two rollouts of four steps; checkpoints after steps 3 and 6, amid each.
OPTIONS = (
    "--config configs/tiny.yaml --trainer.max_epochs 2"
    " --validate_before_fit false --trainer.check_val_every_n_epoch 1 --trainer.enable_progress_bar false"
    " --data.validation.limit 1 --data.prompts_per_rollout 6 --data.prompts_per_step 3 --data.num_ppo_iterations 2"
    " --model.prompts_per_micro_batch 1 --model.kl_target reference --model.kl_coef 0.1"
    " --rollout.reward tests.support.fakes.BehavingReward --model.objective ExactRatios"
    " --model.objective.objective maxk_lightning.objectives.DistinctMaxAtK --model.objective.objective.k 4"
    " --model.objective.objective.correct_at 0.5 --rollout.sampling.max_new_tokens 16"
    " --rollout.eval_sampling.max_new_tokens 16 --rollout.eval_sampling.num_completions 8"
    " --checkpoint.every_n_epochs null --checkpoint.every_n_train_steps 3 --checkpoint.save_top_k -1"
    " --checkpoint.filename {step}"
)
DDP = f"{OPTIONS} --trainer.strategy ddp --trainer.devices 2"
FSDP2_ALONE = f"{OPTIONS} --trainer.strategy fsdp2 --trainer.devices 1"
FSDP2 = f"{OPTIONS} --trainer.strategy fsdp2 --trainer.devices 2"
# Fewer tokens than a group has, so that groups are split, and ranks make different numbers of passes of their own.
FSDP2_LEAN = (
    f"{OPTIONS} --trainer.strategy maxk_lightning.strategy.FSDP2Strategy --trainer.devices 2"
    " --trainer.strategy.reduce_every_micro_batch true"
    " --model.prompts_per_micro_batch null --model.tokens_per_micro_batch 150"
)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint file or directory."""
    checkpoint: dict[str, Any] = read_sharded(path) if is_sharded(path) else torch.load(path, weights_only=True)
    return checkpoint


def _kill_and_finish(run: Run) -> Run:
    run.start_and_kill()
    assert read(run.checkpoint("last"))["global_step"] in (3, 6)
    return run.finish("--ckpt_path", "last")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("one"), OPTIONS).finish()


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _kill_and_finish(Run(tmp_path_factory.mktemp("ddp"), DDP))


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _kill_and_finish(Run(tmp_path_factory.mktemp("fsdp2"), FSDP2))


@pytest.fixture(scope="module")
def fewer(tmp_path_factory: pytest.TempPathFactory, fsdp2: Run) -> Run:
    """One rank goes on amid the first rollout of two."""
    run = Run(tmp_path_factory.mktemp("fewer"), FSDP2_ALONE)
    return run.finish("--ckpt_path", str(fsdp2.checkpoint("step=3")))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, fewer: Run) -> Run:
    """Two ranks go on amid the second rollout of one."""
    run = Run(tmp_path_factory.mktemp("more"), FSDP2_LEAN)
    return run.finish("--ckpt_path", str(fewer.checkpoint("step=6")))


def _assert_like(run: Run, one: Run, first_step: int = 0) -> None:
    """The scalars of the steps that a run made, and its last weights and optimizer state, are those of one process."""
    ours, theirs = scalars(run.root), scalars(one.root)
    assert ours.keys() == theirs.keys()
    for tag, points in theirs.items():
        expected = {step: value for step, value in points.items() if step >= first_step}
        # Lightning logs a step after the checkpoint that follows it: a kill in between loses the step's point.
        if 2 in expected and 2 not in ours[tag]:
            del expected[2]
        # Sums of float32 numbers in another order; diagnostics of ratios magnify it by the length of completions.
        assert ours[tag] == pytest.approx(expected, rel=1e-3, abs=1e-4), tag
    assert len(theirs["train/loss"]) == 8
    assert len(theirs["val/reward"]) == len(theirs["train/reward"]) == 2


def _assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in theirs["state_dict"].items():
        # Up to 6 Adam steps of 1e-4 move a weight by up to 6e-4. Rounding moves it by 1e-7, but where a gradient is as
        # small as Adam's eps (1e-8) by a few percent of a step.
        torch.testing.assert_close(ours["state_dict"][name], weight, atol=2e-5, rtol=0.0)
    for index, moments in theirs["optimizer_states"][0]["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = ours["optimizer_states"][0]["state"][index][key]
            torch.testing.assert_close(moment, moments[key], atol=1e-6, rtol=1e-3)


@pytest.mark.slow
def test_one_process_goes_on_amid_a_rollout_bit_for_bit(one: Run, tmp_path: Path) -> None:
    again = Run(tmp_path, OPTIONS).finish("--ckpt_path", str(one.checkpoint("step=3")))
    ours, theirs = read(again.checkpoint("last")), read(one.checkpoint("last"))
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(ours[key], theirs[key], key)
    for tag, points in scalars(one.root).items():
        assert scalars(again.root)[tag] == {step: value for step, value in points.items() if step >= 3}, tag


@pytest.mark.slow
def test_two_ddp_processes_killed_and_resumed_are_one(one: Run, ddp: Run) -> None:
    _assert_like(ddp, one)
    _assert_same_state(read(ddp.checkpoint("last")), read(one.checkpoint("last")))


@pytest.mark.slow
def test_two_sharded_processes_killed_and_resumed_are_one(one: Run, fsdp2: Run) -> None:
    _assert_like(fsdp2, one)
    assert is_sharded(fsdp2.checkpoint("last"))
    _assert_same_state(read(fsdp2.checkpoint("last")), read(one.checkpoint("last")))


@pytest.mark.slow
def test_a_sharded_run_goes_on_amid_a_rollout_with_fewer_and_with_more_ranks(one: Run, fewer: Run, more: Run) -> None:
    _assert_like(fewer, one, first_step=3)
    _assert_same_state(read(fewer.checkpoint("last")), read(one.checkpoint("last")))
    _assert_like(more, one, first_step=6)


@pytest.mark.slow
def test_a_sharded_checkpoint_is_exported_without_processes(fsdp2: Run, one: Run, tmp_path: Path) -> None:
    export(str(fsdp2.checkpoint("last")), str(tmp_path / "sharded"))
    export(str(one.checkpoint("last")), str(tmp_path / "one"))
    sharded, whole = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("sharded", "one"))
    weights = read(fsdp2.checkpoint("last"))["state_dict"]
    assert sharded.keys() == whole.keys()
    for name in whole:
        assert torch.equal(sharded[name], weights[f"policy.model.{name}"]), name
        torch.testing.assert_close(sharded[name], whole[name], atol=2e-5, rtol=0.0)  # as above


FAILURES = {
    "reward of the first rank": (
        "--rollout.reward tests.support.fakes.RaisingReward --rollout.reward.rank 0 --rollout.reward.num_rollouts 2",
        "rank 0: ZeroDivisionError: no reward on rank 0",
    ),
    "reward of the second rank": (
        "--rollout.reward tests.support.fakes.RaisingReward --rollout.reward.rank 1 --rollout.reward.num_rollouts 2",
        "rank 1: ZeroDivisionError: no reward on rank 1",
    ),
    "reward of the rollout ahead": (
        "--rollout.reward tests.support.fakes.RaisingReward --rollout.reward.rank 1 --rollout.reward.num_rollouts 2"
        " --rollout.rollouts_ahead 1",
        "rank 1: ZeroDivisionError: no reward on rank 1",
    ),
    "engine that refuses": (
        "--rollout.engine tests.support.fakes.RefusingEngine",
        "rank 1: ValueError: a prompt leaves no room",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(1700)
@pytest.mark.parametrize("name", FAILURES)
def test_a_rank_that_fails_ends_all_of_them_with_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Nobody waits for a rank that has left: the time-out of the processes is half an hour."""
    options, sentence = FAILURES[name]
    no_validation = "--data.validation null --checkpoint.every_n_train_steps null --checkpoint.every_n_epochs 9"
    process = Run(tmp_path, f"{DDP} {no_validation} {options}").start()
    _, errors = process.communicate(timeout=900)
    assert process.returncode not in (0, None)
    assert sentence in errors.decode()
    assert f"the run can be continued from {tmp_path / 'checkpoints' / 'last.ckpt'}" in errors.decode()
    assert read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4  # the first rollout's
    mended = "--rollout.engine maxk_lightning.rollouts.TransformersEngine" if "engine" in name else ""
    run = Run(tmp_path, f"{DDP} {no_validation} {mended}").finish("--ckpt_path", "last")
    assert read(run.checkpoint("last"))["global_step"] == 8


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_policy_that_the_reading_rank_cannot_load_ends_all_of_them(tmp_path: Path) -> None:
    shutil.copytree(resolve_policy("builtin"), tmp_path / "policy")
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    process = Run(tmp_path / "run", f"{FSDP2} --model.policy {tmp_path / 'policy'}").start()
    _, errors = process.communicate(timeout=900)
    assert process.returncode not in (0, None)
    assert "ValueError: Error while deserializing header" in errors.decode()
