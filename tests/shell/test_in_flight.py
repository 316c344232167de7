"""Training with an engine that is given weights while it samples: versions, ages, replay, resume and failures."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.data import Builtin
from maxk_lightning.module import PolicyModule
from maxk_lightning.rollouts import EngineError, Replay, TransformersEngine, VLLMServerEngine
from maxk_lightning.rollouts.rollout import Rollout
from maxk_lightning.types import Completion, Prompt, Sampling, Segment
from tests.support.fakes import LengthReward
from tests.support.training import fit

HALF = 5
SAMPLING = Sampling(num_completions=4, max_new_tokens=2 * HALF)
PUSHED = ((Segment(0, 0), Segment(HALF, 1)), (Segment(0, 2), Segment(HALF, 3)), (Segment(0, 4), Segment(HALF, 5)))
"Segments of the rollouts that are sampled ahead, each while two optimizer steps are made."


class HalvesEngine:
    """Samples the second half of every completion of a rollout ahead once it has been given newer weights."""

    runs_apart = True
    in_flight_weight_updates = True

    def __init__(self, policy: str, fail_at: int | None = None) -> None:
        self.policy = policy
        self.fail_at = fail_at
        self.closed = 0
        self._inner = TransformersEngine(policy)
        self._version: int | None = None
        self._is_waiting = False
        self._changed = threading.Condition()

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        with self._changed:
            if version == self.fail_at:
                self.fail_at = None
                raise EngineError("no weights")
            self._inner.load_weights(named_tensors, version)
            self._version = version
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._is_waiting, 60)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        with self._changed:
            begun = self._version
            assert begun is not None
            if threading.current_thread() is threading.main_thread():
                return self._inner.generate(prompts, sampling)
            first = self._inner.generate(prompts, replace(sampling, max_new_tokens=HALF))
            self._is_waiting = True
            assert self._changed.wait_for(lambda: self._version != begun, 60)
            self._is_waiting = False
            self._changed.notify_all()
            if self._version is None:
                raise EngineError("closed")
            return [
                [self._continued(prompt, half, begun, sampling) for half in group]
                for prompt, group in zip(prompts, first, strict=True)
            ]

    def sleep(self) -> bool:
        return False

    def close(self) -> None:
        with self._changed:
            self.closed += 1
            self._inner = TransformersEngine(self.policy)
            self._version = None
            self._changed.notify_all()

    def _continued(self, prompt: Prompt, half: Completion, begun: int, sampling: Sampling) -> Completion:
        if half.finish_reason == "stop":
            return replace(half, segments=(Segment(0, begun),))
        prompt = replace(prompt, token_ids=prompt.token_ids + half.token_ids, seed=prompt.seed + 1)
        ((rest,),) = self._inner.generate([prompt], replace(sampling, num_completions=1, max_new_tokens=HALF))
        assert self._version is not None
        return replace(
            rest,
            token_ids=half.token_ids + rest.token_ids,
            logprobs=half.logprobs + rest.logprobs,
            entropies=None,
            text=half.text + rest.text,
            segments=(Segment(0, begun), Segment(HALF, self._version)),
        )


class Recording(RolloutCallback):
    """Keeps the rollouts, and the ages that were logged of them; saves a checkpoint at the end of the second epoch."""

    def __init__(self, engine: HalvesEngine, **options: Any) -> None:
        super().__init__(engine, LengthReward(), SAMPLING, rollouts_ahead=1, **options)
        self.rollouts: list[Rollout] = []
        self.ages: list[tuple[float, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        """Note."""
        super().on_train_epoch_end(trainer, pl_module)
        assert self.sampler.current is not None
        self.rollouts.append(self.sampler.current)
        told = trainer.logged_metrics
        self.ages.append((float(told["rollout/age"]), float(told["rollout/age_max"])))
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "early.ckpt")

    @property
    def segments(self) -> list[set[tuple[Segment, ...]]]:
        """Of every rollout."""
        return [{each.segments for each in rollout.samples.completions} for rollout in self.rollouts]


def _fit(policy: str, root: Path, callback: RolloutCallback, ckpt_path: Path | None = None) -> dict[str, Tensor]:
    """Weights after four rollouts of two optimizer steps each."""
    return fit(
        policy,
        root,
        epochs=4,
        rollout=callback,
        callbacks=[ModelCheckpoint(root, save_top_k=0, every_n_epochs=100)],
        module={"optimizer": partial(torch.optim.Adam, lr=1e-2)},
        data={"train": Builtin("train", limit=12), "prompts_per_rollout": 2},
        ckpt_path=ckpt_path,
    ).weights


def _mean_age(rollout: Rollout, step: int) -> float:
    ages = []
    for completion in rollout.samples.completions:
        for place in range(len(completion.token_ids)):
            drawn_by = [segment.version for segment in completion.segments if segment.first_token <= place]
            ages.append(step - (drawn_by[-1] if drawn_by else rollout.version))
    return sum(ages) / len(ages)


def test_a_rollout_goes_on_with_the_weights_of_every_step_and_tokens_are_counted(
    random_policy: str, tmp_path: Path
) -> None:
    callback = Recording(HalvesEngine(random_policy))
    _fit(random_policy, tmp_path, callback)
    assert [rollout.version for rollout in callback.rollouts] == [0, 0, 2, 4]
    assert callback.segments[0] == {()}
    for found, pushed in zip(callback.segments[1:], PUSHED, strict=True):
        assert pushed in found
        assert found <= {pushed, pushed[:1]}
    for index, (mean, largest) in enumerate(callback.ages):
        assert mean == pytest.approx(_mean_age(callback.rollouts[index], 2 * index))
        assert largest == (2 if index else 0)
        assert mean < largest or index == 0
    assert all(rollout.logprob_gap < 1e-4 for rollout in callback.rollouts)


def test_segments_survive_a_checkpoint_and_the_run_resumes_to_the_same_bits(random_policy: str, tmp_path: Path) -> None:
    whole = Recording(HalvesEngine(random_policy))
    weights = _fit(random_policy, tmp_path / "whole", whole)
    resumed = Recording(HalvesEngine(random_policy))
    again = _fit(random_policy, tmp_path / "resumed", resumed, tmp_path / "whole" / "early.ckpt")
    assert resumed.segments == whole.segments[2:]
    assert resumed.ages == whole.ages[2:]
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name


def test_a_push_that_fails_is_as_an_engine_that_fails(random_policy: str, tmp_path: Path) -> None:
    engine = HalvesEngine(random_policy, fail_at=3)  # while the third rollout is sampled
    callback = Recording(engine)
    _fit(random_policy, tmp_path, callback)
    assert [rollout.version for rollout in callback.rollouts] == [0, 0, 4, 4]
    assert callback.segments[2] == {()}  # sampled anew when its epoch began
    assert callback.ages[2] == (0.0, 0.0)
    assert engine.closed == 3  # at the push, when the rollout is asked for, and at the end


def test_replayed_groups_are_as_old_as_their_oldest_token(random_policy: str, tmp_path: Path) -> None:
    callback = Recording(HalvesEngine(random_policy), replay=Replay(share=0.5))
    _fit(random_policy, tmp_path, callback)
    assert callback.replayed is not None
    kept = callback.replayed.state()["kept"]
    versions = {record["version"] for record in kept}
    assert versions <= {0, 2, 4}  # never that of a second half
    assert any(record["segments"][0] and record["segments"][0][-1][1] % 2 for record in kept)


def test_pushing_in_flight_needs_a_rollout_that_is_under_way() -> None:
    engine = VLLMServerEngine(url="http://127.0.0.1:1", in_flight_weight_updates=True)
    with pytest.raises(ValueError, match=r"in_flight_weight_updates has no effect without rollout\.rollouts_ahead"):
        RolloutCallback(engine)
    RolloutCallback(engine, rollouts_ahead=1)
