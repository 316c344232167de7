"""Progress moves as samples end, in terminals and in files, and rewards of evaluation are their own."""

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from maxk_lightning.callbacks import RolloutCallback, RolloutProgressBar
from maxk_lightning.callbacks.sampling_bar import SamplingBar, make_progress
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.collect import sample
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score
from tests.support.fakes import LengthReward
from tests.support.runs import scalars
from tests.support.tiny_run import run
from tests.support.training import SAMPLING, fit

PROMPTS = [Prompt(problem_id="a", token_ids=(5, 6), seed=1), Prompt(problem_id="b", token_ids=(7,), seed=2)]


class Constant:
    """A reward that knows nothing."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [[Score(reward=0.125, verdicts=()) for _ in group] for group in completions]


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, num_completions: int) -> None:
        self.events.append(f"begin {num_completions}")

    def ended(self, completion: Completion) -> None:
        self.events.append("ended")


class OnlyGenerates:
    """An engine that does not stream."""

    def __init__(self, policy: str) -> None:
        self._engine = TransformersEngine(policy)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return self._engine.generate(prompts, sampling)


def test_a_watched_engine_gives_the_same_samples(random_policy: str) -> None:
    plain = TransformersEngine(random_policy).generate(PROMPTS, SAMPLING)
    for engine in (TransformersEngine(random_policy), OnlyGenerates(random_policy)):
        notes = Notes()
        assert sample(engine, PROMPTS, SAMPLING, notes) == plain  # type: ignore[arg-type]
        assert notes.events == ["ended"] * 8


def test_fit_tells_its_watcher_of_every_sample(random_policy: str, tmp_path: Path) -> None:
    notes, callback = Notes(), RolloutCallback(TransformersEngine(random_policy), LengthReward(), SAMPLING)
    callback.sampler.watcher = notes
    fit(random_policy, tmp_path, epochs=2, rollout=callback)
    assert notes.events == (["begin 16"] + ["ended"] * 16) * 2


def test_a_terminal_shows_samples_speed_and_the_numbers_of_the_rollout(random_policy: str, tmp_path: Path) -> None:
    screen = io.StringIO()
    bar = RolloutProgressBar(Console(file=screen, force_terminal=True, width=160))
    rollout = RolloutCallback(TransformersEngine(random_policy), LengthReward(), SAMPLING)
    fit(random_policy, tmp_path, epochs=2, rollout=rollout, callbacks=[bar])
    shown = screen.getvalue()
    for part in ("rollouts", "2/2", "sampling", "tokens/s", "16/16", "train reward 0.", "train max@4 0."):
        assert part in shown, part


def test_a_file_gets_a_line_per_rollout(random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", tmp_path, random_policy, **{"trainer.enable_progress_bar": "true"})
    errors = capsys.readouterr().err
    assert "rollout 1 of 2: train reward 0." in errors
    assert "val max@4 0." in errors
    assert "\x1b[" not in errors


def test_a_bar_counts_from_any_thread() -> None:
    lines: list[str] = []
    now = [0.0]
    progress = make_progress(Console(file=io.StringIO(), force_terminal=False))
    bar = SamplingBar(progress, "evaluate", lines.append, clock=lambda: now[0])
    bar.begin(100, num_done=20)
    now[0] = 40.0
    completion = Completion(token_ids=(1, 2), logprobs=(0.0, 0.0), entropies=None, text="", finish_reason="stop")
    threads = [threading.Thread(target=lambda: [bar.ended(completion) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.tasks[0].completed == 100
    assert lines == ["evaluate: 21 of 100 samples, 0 tokens/s"]


def test_validation_may_use_another_reward(random_policy: str, tmp_path: Path) -> None:
    run("fit", tmp_path, random_policy, **{"rollout.eval_reward": f"{__name__}.Constant"})
    found = scalars(tmp_path)
    assert set(found["val/reward"].values()) == {0.125}
    assert 0.125 not in found["train/reward"].values()
