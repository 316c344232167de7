"""The evaluation loop: resumes after any kill, repeats and loses nothing, scores beside sampling."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from torch import Tensor
from tqdm import tqdm

from maxk_lightning.commands.evaluate.collect_samples import Task, collect_samples, read_seconds
from maxk_lightning.evaluation.samples import read_samples
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score, TestCase

NUM_PROBLEMS, NUM_SAMPLES = 10, 6
SETTINGS = {"policy": "p", "num_completions": NUM_SAMPLES, "stop": ("\n", "é")}


class SeededEngine:
    """Sample i of a prompt is a function of (prompt seed, i): the engines' promise."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.generated: list[str] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        time.sleep(self.delay_s)
        self.generated += [prompt.problem_id for prompt in prompts]
        return [[complete(prompt.seed, i) for i in range(sampling.num_completions)] for prompt in prompts]

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise NotImplementedError


def complete(seed: int, index: int) -> Completion:
    rng = random.Random(1000 * seed + index)
    tokens = tuple(rng.randrange(9) for _ in range(rng.randint(1, 400)))
    return Completion(
        token_ids=tokens,
        logprobs=tuple(-rng.random() for _ in tokens),
        entropies=tuple(rng.random() for _ in tokens),
        text="".join(map(str, tokens)),
        finish_reason="stop",
    )


class LastDigitReward:
    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [[Score(reward=int(text[-1]) / 8, verdicts=()) for text in group] for group in completions]


def make_task(num_problems: int = NUM_PROBLEMS) -> Task:
    ids = [f"problem-{i}" for i in range(num_problems)]
    return Task(
        problems=[Problem(id=id_, prompt="?", tests=(TestCase(input="", output=""),)) for id_ in ids],
        prompts=[Prompt(problem_id=id_, token_ids=(1,), seed=seed) for seed, id_ in enumerate(ids)],
        sampling=Sampling(num_completions=NUM_SAMPLES),
        problems_per_chunk=3,
    )


def undisturbed(directory: Path) -> bytes:
    collect_samples(make_task(), SeededEngine(), LastDigitReward(), directory, SETTINGS)
    return (directory / "samples.jsonl").read_bytes()


def test_every_sample_is_there_once_and_in_order(tmp_path: Path) -> None:
    samples = collect_samples(make_task(), SeededEngine(), LastDigitReward(), tmp_path, SETTINGS)
    expected = [(f"problem-{i}", j) for i in range(NUM_PROBLEMS) for j in range(NUM_SAMPLES)]
    assert [(sample.id, sample.sample) for sample in samples] == expected
    assert all(sample.reward == int(sample.completion[-1]) / 8 for sample in samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples


def test_a_finished_evaluation_samples_nothing_again(tmp_path: Path) -> None:
    before = undisturbed(tmp_path)
    engine = SeededEngine()
    collect_samples(make_task(), engine, LastDigitReward(), tmp_path, SETTINGS)
    assert engine.generated == []
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_a_file_cut_at_any_byte_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "whole")
    path = tmp_path / "cut" / "samples.jsonl"
    undisturbed(tmp_path / "cut")
    for length in [0, 1, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 25)]:
        path.write_bytes(whole[:length])
        engine = SeededEngine()
        collect_samples(make_task(), engine, LastDigitReward(), tmp_path / "cut", SETTINGS)
        assert path.read_bytes() == whole
        # Chunks that were whole are not sampled again; a cut chunk is, in its own batch.
        num_whole_groups = whole[:length].count(b"\n") // NUM_SAMPLES
        assert len(engine.generated) == NUM_PROBLEMS - num_whole_groups // 3 * 3 or num_whole_groups == NUM_PROBLEMS


def run_slowly(directory: str) -> None:
    # Forked processes share tqdm's lock: one that is killed while it holds it would stop all that come after it.
    tqdm.set_lock(threading.RLock())
    collect_samples(make_task(), SeededEngine(delay_s=0.03), LastDigitReward(), Path(directory), SETTINGS)


def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "whole")
    rng = random.Random(1)
    kills = 0
    for _ in range(100):
        process = multiprocessing.get_context("fork").Process(target=run_slowly, args=(str(tmp_path / "killed"),))
        process.start()
        process.join(timeout=rng.uniform(0.005, 0.09))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills += 1
        if kills == 10:
            break
    assert kills == 10, "the evaluation ended before it could be killed ten times"
    engine = SeededEngine()
    collect_samples(make_task(), engine, LastDigitReward(), tmp_path / "killed", SETTINGS)
    assert (tmp_path / "killed" / "samples.jsonl").read_bytes() == whole


class WaitingReward(LastDigitReward):
    """Scores a chunk only when the next one is being sampled: hangs unless the two overlap."""

    def __init__(self, num_chunks: int, sampled: threading.Semaphore) -> None:
        self.left = num_chunks
        self.sampled = sampled

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        self.left -= 1
        if self.left:
            assert self.sampled.acquire(timeout=20), "the next chunk was not sampled while this one was scored"
        return super().score(problems, completions)


class SignallingEngine(SeededEngine):
    def __init__(self, sampled: threading.Semaphore) -> None:
        super().__init__()
        self.sampled = sampled

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        if self.generated:
            self.sampled.release()
        return super().generate(prompts, sampling)


def test_scoring_runs_beside_sampling(tmp_path: Path) -> None:
    sampled = threading.Semaphore(0)
    reward = WaitingReward(4, sampled)
    collect_samples(make_task(), SignallingEngine(sampled), reward, tmp_path, SETTINGS)
    assert reward.left == 0


def test_samples_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    with pytest.raises(ValueError, match="num_completions was 6, is 7"):
        collect_samples(make_task(), SeededEngine(), LastDigitReward(), tmp_path, SETTINGS | {"num_completions": 7})


def test_seconds_add_up_over_restarts(tmp_path: Path) -> None:
    collect_samples(make_task(3), SeededEngine(delay_s=0.02), LastDigitReward(), tmp_path, SETTINGS)
    first = read_seconds(tmp_path)
    (tmp_path / "times.jsonl").write_bytes((tmp_path / "times.jsonl").read_bytes() + b'{"generating": 1')  # killed here
    collect_samples(make_task(6), SeededEngine(delay_s=0.02), LastDigitReward(), tmp_path, SETTINGS)
    assert read_seconds(tmp_path).generating >= first.generating + 0.02
    assert len((tmp_path / "times.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS | {"stop": ["\n", "é"]}


class FailingReward(LastDigitReward):
    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        raise RuntimeError("the user's reward has a bug")


def test_an_error_in_the_reward_ends_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has a bug"):
        collect_samples(make_task(), SeededEngine(), FailingReward(), tmp_path, SETTINGS)
