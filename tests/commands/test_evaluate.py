"""The evaluate command on a random policy with a cheap reward: outputs, settings, benchmarks, shards and kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from maxk_lightning.commands.arguments import call
from maxk_lightning.commands.evaluate import evaluate
from maxk_lightning.commands.evaluate.policy import policy_digest
from maxk_lightning.evaluation import load
from maxk_lightning.evaluation.origin import Origin, Training
from maxk_lightning.evaluation.samples import read_samples
from tests.support.paths import ROOT


def write_problems(path: Path, *ids: str) -> Path:
    records = [{"id": id_, "prompt": f"Print {id_}.", "tests": [{"input": "", "output": id_}]} for id_ in ids]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    problems = write_problems(tmp_path / "alphabet.jsonl", "a", "b", "c", "d", "e")
    settings = {
        "trainer": {"accelerator": "cpu", "max_epochs": 3},
        "data": {"test": {"class_path": "maxk_lightning.data.JsonLines", "init_args": {"path": str(problems)}}},
        "rollout": {
            "reward": {"class_path": "tests.support.fakes.LengthReward"},
            "eval_sampling": {"num_completions": 2, "max_new_tokens": 6},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(config: Path, policy: str, out: Path, *more: str, num_samples: int = 3) -> None:
    fixed = ["--config", str(config), "--policy", policy, "--out", str(out), "--num_samples", str(num_samples)]
    call(evaluate, [*fixed, "--problems_per_chunk", "2", *more])


def test_everything_promised_is_written(
    config: Path, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, random_policy, tmp_path / "out", "--name", "random")
    samples = read_samples(tmp_path / "out" / "samples.jsonl")
    assert [(sample.id, sample.sample) for sample in samples] == [(id_, i) for id_ in "abcde" for i in range(3)]
    assert {sample.num_tokens for sample in samples} <= set(range(1, 7))
    (loaded,) = load(tmp_path / "out")
    assert (loaded.name, loaded.benchmark) == ("random", "alphabet")
    assert loaded.statements["a"] == "Print a."
    assert [point.k for point in loaded.curve("max_at_k")] == [1, 2, 3]
    assert loaded.summary.mean_entropy is not None
    assert loaded.summary.seconds.generating > 0
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    assert "random on alphabet: 5 problems x 3 samples" in capsys.readouterr().out


def test_overrides_lie_over_the_yaml_and_change_the_settings(config: Path, random_policy: str, tmp_path: Path) -> None:
    run(config, random_policy, tmp_path / "out", "--rollout.eval_sampling.max_new_tokens", "2")
    assert max(sample.num_tokens for sample in read_samples(tmp_path / "out" / "samples.jsonl")) <= 2
    with pytest.raises(ValueError, match="max_new_tokens was 2, is 6"):
        run(config, random_policy, tmp_path / "out")


def test_samples_of_other_tests_or_of_another_reward_are_not_taken_for_these(
    config: Path, random_policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "own_reward.py"
    code.write_text("def none(completions):\n    return [0.0] * len(completions)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["--rollout.reward", "own_reward.none"]
    run(config, random_policy, tmp_path / "out", *own)
    code.write_text("def none(completions):\n    return [1.0] * len(completions)\n")
    with pytest.raises(ValueError, match=r"holds samples of other settings \(reward_code was '\w+', is '\w+'\)"):
        run(config, random_policy, tmp_path / "out", *own)
    run(config, random_policy, tmp_path / "plain")
    problems = (tmp_path / "alphabet.jsonl").read_text()
    (tmp_path / "alphabet.jsonl").write_text(problems.replace('"output": "b"', '"output": "B"'))
    with pytest.raises(ValueError, match=r"holds samples of other settings \(problems was '\w+', is '\w+'\)"):
        run(config, random_policy, tmp_path / "plain")


def nothing(completions, **columns):  # type: ignore[no-untyped-def]
    return [float("nan")] * len(completions)


def test_completions_without_any_reward_are_told(config: Path, random_policy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alphabet: none of 15 completions could be scored"):
        run(config, random_policy, tmp_path / "out", "--rollout.reward", "tests.commands.test_evaluate.nothing")


def test_a_split_of_the_yaml_takes_the_place_of_the_test_problems(
    config: Path, random_policy: str, tmp_path: Path
) -> None:
    train = write_problems(tmp_path / "train.jsonl", "f", "g")
    source = ["--data.train", "maxk_lightning.data.JsonLines", "--data.train.init_args.path", str(train)]
    run(config, random_policy, tmp_path / "out", "--split", "train", *source)
    assert {sample.id for sample in read_samples(tmp_path / "out" / "samples.jsonl")} == {"f", "g"}
    with pytest.raises(ValueError, match=r"data.validation is null in the YAML: give it, or --benchmarks"):
        run(config, random_policy, tmp_path / "out", "--split", "validation", "--data.validation", "null")
    benchmarks = json.dumps({"own": {"class_path": "maxk_lightning.data.JsonLines", "init_args": {"path": str(train)}}})
    with pytest.raises(ValueError, match="--split train names problems of the YAML"):
        run(config, random_policy, tmp_path / "out", "--split", "train", "--benchmarks", benchmarks)


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_second_yaml_lies_over_the_first_and_names_no_other_policy(
    form: str, config: Path, random_policy: str, tmp_path: Path
) -> None:
    """The problems, which the second does not name, are those of the first."""
    second = tmp_path / "second.yaml"
    sampling = {"eval_sampling": {"num_completions": 2, "max_new_tokens": 2}}
    second.write_text(yaml.safe_dump({"rollout": sampling, "model": {"policy": "builtin"}}))
    run(config, random_policy, tmp_path / "out", *form.format(second).split())
    samples = read_samples(tmp_path / "out" / "samples.jsonl")
    assert {sample.id for sample in samples} == set("abcde")
    assert max(sample.num_tokens for sample in samples) <= 2
    run(config, random_policy, tmp_path / "same", "--rollout.eval_sampling.max_new_tokens", "2")
    assert samples == read_samples(tmp_path / "same" / "samples.jsonl")


@pytest.mark.parametrize("form", ["json", "file"])
def test_several_benchmarks_in_one_call(config: Path, random_policy: str, tmp_path: Path, form: str) -> None:
    sources = {
        name: {"class_path": "maxk_lightning.data.JsonLines", "init_args": {"path": str(path)}}
        for name, path in {
            "one": write_problems(tmp_path / "1.jsonl", "x"),
            "two": write_problems(tmp_path / "2.jsonl", "y", "z"),
        }.items()
    }
    (tmp_path / "benchmarks.yaml").write_text(yaml.safe_dump(sources))
    benchmarks = {"json": json.dumps(sources), "file": str(tmp_path / "benchmarks.yaml")}[form]
    run(config, random_policy, tmp_path / "out", "--benchmarks", benchmarks, num_samples=1)
    runs = load(tmp_path / "out")
    assert [(run.name, run.benchmark, run.summary.num_problems) for run in runs] == [
        ("out", "one", 1),
        ("out", "two", 2),
    ]


def test_shards_join_to_what_one_process_writes(config: Path, random_policy: str, tmp_path: Path) -> None:
    run(config, random_policy, tmp_path / "whole")
    run(config, random_policy, tmp_path / "joined", "--shard", "1/2")
    assert not (tmp_path / "joined" / "summary.json").exists()
    run(config, random_policy, tmp_path / "joined", "--shard", "0/2")
    whole, joined = (read_samples(tmp_path / name / "samples.jsonl") for name in ("whole", "joined"))
    # Batches differ, so log-probs may differ in their last bits; the samples themselves may not.
    assert [(s.id, s.sample, s.completion, s.reward) for s in joined] == [
        (s.id, s.sample, s.completion, s.reward) for s in whole
    ]
    assert load(tmp_path / "joined")[0].summary.max_at_k == load(tmp_path / "whole")[0].summary.max_at_k


def test_predictions_beyond_the_samples_are_asked_for(
    config: Path, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, random_policy, tmp_path / "out", "--predict_up_to", "10")
    (loaded,) = load(tmp_path / "out")
    assert [point.k for point in loaded.curve("predicted:max_at_k")] == [4, 8, 10]
    assert [point.k for point in loaded.curve("max_at_k")] == [1, 2, 3]
    assert "predicted 10" in capsys.readouterr().out


def test_sampling_stops_at_the_width_and_goes_on_for_a_smaller_one(
    config: Path, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, random_policy, tmp_path / "out", "--until_width", "1.5", num_samples=8)
    (loaded,) = load(tmp_path / "out")
    assert loaded.summary.num_samples == 1  # rewards are within 0 and 1: any interval is narrower
    assert [point.k for point in loaded.curve("predicted:max_at_k")] == [2, 4, 8]
    assert "after 5 of 40 samples; 35 (88%) were not needed" in capsys.readouterr().out
    run(config, random_policy, tmp_path / "out", "--until_width", "1e-9", num_samples=8)
    samples = read_samples(tmp_path / "out" / "samples.jsonl")
    assert sorted((sample.id, sample.sample) for sample in samples) == [(id_, i) for id_ in "abcde" for i in range(8)]
    assert "not reached" in capsys.readouterr().out
    (loaded,) = load(tmp_path / "out")
    assert loaded.summary.num_samples == 8
    assert loaded.curve("predicted:max_at_k") == ()
    with pytest.raises(ValueError, match="samples_per_round was 1, is None"):
        run(config, random_policy, tmp_path / "out", num_samples=8)


def save_checkpoint(path: Path, policy: str, scale: float) -> None:
    weights = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    state = {f"policy.model.{name}": weight * scale for name, weight in weights.items()}
    torch.save({"policy": policy, "state_dict": state}, path)


def test_a_checkpoint_is_evaluated_as_it_is_now(config: Path, random_policy: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    save_checkpoint(checkpoint, random_policy, 1.0)
    run(config, random_policy, tmp_path / "directory")
    run(config, str(checkpoint), tmp_path / "checkpoint")
    before, after = (read_samples(tmp_path / name / "samples.jsonl") for name in ("directory", "checkpoint"))
    assert before == after
    save_checkpoint(checkpoint, random_policy, 1.1)  # trained further under the same name
    with pytest.raises(ValueError, match="samples of other settings"):
        run(config, str(checkpoint), tmp_path / "checkpoint")


def test_another_policy_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100_000)
    before = policy_digest(str(tmp_path))
    assert policy_digest(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"0" * 99_999 + b"1")
    assert policy_digest(str(tmp_path)) != before
    assert policy_digest("owner/name") == "owner/name"


BAD = {
    "samples": (["--num_samples", "0"], "--num_samples is 0"),
    "chunk": (["--problems_per_chunk", "0"], "--problems_per_chunk is 0"),
    "shard": (["--shard", "2/2"], "--shard is '2/2'"),
    "prediction": (["--num_samples", "8", "--predict_up_to", "8"], "--predict_up_to is 8, must be above"),
    "width": (["--until_width", "0"], "--until_width is 0"),
    "width of a shard": (["--until_width", ".1", "--shard", "0/2"], "does not go with --shard"),
    "policy": (["--policy", "/nowhere"], "neither a directory"),
    "config": (["--config", "/nowhere.yaml"], "--config: /nowhere.yaml: no such file"),
    "length": (["--data.max_prompt_tokens", "1"], "no problem has a prompt of at most"),
}


def test_a_first_yaml_that_is_not_there_is_refused(random_policy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config: /nowhere\.yaml is not a file"):
        call(evaluate, ["--config", "/nowhere.yaml", "--policy", random_policy, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("more", "reason"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_sentence(
    config: Path, random_policy: str, tmp_path: Path, more: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        call(evaluate, ["--config", str(config), "--policy", random_policy, "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
NUM_SPAWNED, NUM_FORKED = 2, 8


@pytest.mark.slow
def test_killed_ten_times_at_random_it_ends_with_the_bytes_of_an_undisturbed_run(
    config: Path, random_policy: str, tmp_path: Path
) -> None:
    """The real command and engine, killed while it writes; most are forks of one interpreter, to save its imports."""
    ids = [f"problem-{i}" for i in range(30)]
    problems = write_problems(tmp_path / "many.jsonl", *ids)
    source = {"class_path": "maxk_lightning.data.JsonLines", "init_args": {"path": str(problems)}}
    args = ["--config", str(config), "--policy", random_policy, "--benchmarks", json.dumps({"many": source})]
    args += ["--num_samples", "40", "--problems_per_chunk", "1", "--rollout.eval_sampling.max_new_tokens", "20"]
    command = ["evaluate", *args, "--out", str(tmp_path / "killed")]
    path, rng = tmp_path / "killed" / "many" / "samples.jsonl", random.Random(0)
    sizes = [0]

    def kill_while_it_writes(pid: int) -> None:
        before = time.monotonic()
        while (path.stat().st_size if path.exists() else 0) <= sizes[-1] and time.monotonic() < before + 60:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)

    for _ in range(NUM_SPAWNED):
        process = subprocess.Popen(
            [sys.executable, "-m", "maxk_lightning", *command],
            env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        kill_while_it_writes(process.pid)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        sizes.append(path.stat().st_size)
    forking = [sys.executable, "-m", "tests.support.forking_command"]
    with subprocess.Popen(
        forking, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as forker:
        assert forker.stdin
        assert forker.stdout
        for _ in range(NUM_FORKED):
            print(json.dumps(command), file=forker.stdin, flush=True)
            kill_while_it_writes(int(forker.stdout.readline()))
            assert int(forker.stdout.readline()) == signal.SIGKILL, "it ended before it could be killed"
            sizes.append(path.stat().st_size)
        forker.stdin.close()
    assert sizes == sorted(set(sizes)), "every kill came while new samples were being written"
    call(evaluate, command[1:])
    call(evaluate, [*args, "--out", str(tmp_path / "whole")])
    assert path.read_bytes() == (tmp_path / "whole" / "many" / "samples.jsonl").read_bytes()
    assert [(s.id, s.sample) for s in read_samples(path)] == [(id_, i) for id_ in ids for i in range(40)]


def test_a_ladder_of_temperatures_is_an_output_each_that_compare_reads(
    config: Path, random_policy: str, tmp_path: Path
) -> None:
    run(config, random_policy, tmp_path / "ladder", "--temperatures", ".5,1", "--name", "random")
    runs = load(tmp_path / "ladder")
    assert [loaded.name for loaded in runs] == ["random T=0.5", "random T=1"]
    cold, warm = (read_samples(loaded.path / "samples.jsonl") for loaded in runs)
    run(config, random_policy, tmp_path / "cold", "--rollout.eval_sampling.temperature", "0.5")
    assert [each.completion for each in cold] == [
        each.completion for each in read_samples(tmp_path / "cold" / "samples.jsonl")
    ]
    assert [each.completion for each in cold] != [each.completion for each in warm]


@pytest.mark.parametrize("given", ["", "0", "1,1", "warm", "1,-2"])
def test_temperatures_are_positive_and_different(given: str, config: Path, random_policy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--temperatures is"):
        run(config, random_policy, tmp_path, f"--temperatures={given}")


def test_the_reward_of_evaluation_is_used(config: Path, random_policy: str, tmp_path: Path) -> None:
    run(config, random_policy, tmp_path / "out", "--rollout.eval_reward", "tests.shell.test_progress.Constant")
    assert {sample.reward for sample in read_samples(tmp_path / "out" / "samples.jsonl")} == {0.125}


SELECTED = {
    "rollout.reward": "maxk_lightning.rewards.UnitTestReward",
    "data.test": "maxk_lightning.data.Builtin",
    "data.test.num_public": "2",
    "data.test.limit": "3",
    "rollout.eval_sampling.max_new_tokens": "64",
}


def test_realised_best_of_k_lies_beside_max_at_k(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for key, value in SELECTED.items() for word in (f"--{key}", value)]
    out = tmp_path / "out"
    run(config, "builtin", out, *options, "--select", "public,public+agreement,codet,likelihood", num_samples=6)
    realised = json.loads((out / "realised.json").read_text())
    assert list(realised) == ["public", "public+agreement", "codet", "likelihood"]
    summary = load(out)[0].summary
    for each in realised.values():
        assert [point["k"] for point in each["curve"]] == [1, 2, 4, 6]
        assert each["curve"][0]["value"] == pytest.approx(summary.max_at_k[0].value)  # one candidate: no choice
        for point, best in zip(each["curve"], summary.max_at_k, strict=True):
            assert point["value"] <= best.value + 1e-12
        assert len(each["problems"]) == 3
    samples = read_samples(out / "samples.jsonl")
    assert all(sample.mean_logprob is not None and sample.mean_logprob < 0 for sample in samples)
    problem = samples[0].id  # of all six the likeliest is chosen
    likeliest = max((s for s in samples if s.id == problem), key=lambda s: s.mean_logprob or 0.0)
    assert realised["likelihood"]["problems"][problem][-1] == likeliest.reward
    assert "realised best-of-k" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("select", "sentence"),
    [
        ("codet", r"--select codet needs rollout\.reward: UnitTestReward, not LengthReward"),
        ("public", r"--select public needs rollout\.reward: UnitTestReward, not LengthReward"),
        ("best", r"'best' must be one of public, agreement, codet, majority, likelihood, joined by , or \+"),
        ("likelihood,likelihood", "in which one appears twice"),
    ],
)
def test_a_selector_that_cannot_work_is_refused(
    select: str, sentence: str, config: Path, random_policy: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(config, random_policy, tmp_path / "out", "--select", select)
    assert not (tmp_path / "out").exists()


def test_the_summary_says_which_policy_was_sampled_and_how_it_was_trained(
    config: Path, random_policy: str, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "last.ckpt"
    save_checkpoint(checkpoint, random_policy, 1.0)
    run(config, random_policy, tmp_path / "base", num_samples=1)
    run(config, str(checkpoint), tmp_path / "trained", "--seed_everything", "5", num_samples=1)
    base, trained = (each.summary.origin for each in load(tmp_path / "base", tmp_path / "trained"))
    assert base == Origin(policy=random_policy, seed=42, temperature=1.0)
    training = Training(started_from=random_policy, steps=0)
    assert trained == Origin(policy=str(checkpoint), seed=5, temperature=1.0, training=training)
    digest = policy_digest(str(tmp_path / "trained" / "policy"))
    (tmp_path / "trained" / "policy" / "maxk_training.json").unlink()
    assert policy_digest(str(tmp_path / "trained" / "policy")) == digest, "settings are not weights"


def test_every_k_is_estimated_from_samples_that_were_told_it(
    config: Path, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = ("--data.template.user", "{prompt} Tries: {k}.")
    run(config, random_policy, tmp_path / "told", "--told_k", "same", *template, num_samples=4)
    told = json.loads((tmp_path / "told/told.json").read_text())
    for metric in ("max_at_k", "pass_at_k"):
        assert [point["k"] for point in told[metric]] == [1, 2, 4]
        for point in told[metric]:
            (alone,) = load(tmp_path / f"told/told-{point['k']}")
            (same,) = (each for each in alone.curve(metric) if each.k == point["k"])
            assert point["value"] == same.value
    texts = [[sample.completion for sample in read_samples(tmp_path / f"told/told-{k}/samples.jsonl")] for k in (1, 4)]
    assert texts[0] != texts[1]
    assert "told the k of each row" in capsys.readouterr().out
    run(config, random_policy, tmp_path / "four", *template, num_samples=4)
    assert [sample.completion for sample in read_samples(tmp_path / "four/samples.jsonl")] == texts[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--told_k", "0,1"], "--told_k is '0,1'"),
        (["--told_k", "some"], "--told_k is 'some'"),
        (["--told_k", "2"], r"data\.template has no \{k\}"),
        (["--told_k", "2", "--temperatures", "1"], "does not go with --temperatures"),
    ],
)
def test_what_cannot_be_told_is_refused(
    given: list[str], message: str, config: Path, random_policy: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(config, random_policy, tmp_path / "out", *given)
