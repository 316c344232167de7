"""`evaluate`: a policy -> samples.jsonl, summary.json, curves.png."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from maxk_lightning.commands.arguments import check_counts
from maxk_lightning.data.sources import ProblemSource


def evaluate(
    config: str,
    policy: str,
    out: str,
    num_samples: int = 256,
    name: str | None = None,
    benchmarks: dict[str, ProblemSource] | None = None,
    split: Literal["train", "validation", "test"] = "test",
    problems_per_chunk: int = 8,
    shard: str | None = None,
    temperatures: str | None = None,
    told_k: str | None = None,
    select: str | None = None,
    predict_up_to: int | None = None,
    until_width: float | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Sample a policy on held-out problems, score the samples and summarise them as max@k and pass@k curves.

    A run that was killed continues when the same command is given again.

    Args:
        config: YAML of a run: its problems, prompt template, engine, `rollout.eval_reward` or `rollout.reward`,
            and `rollout.eval_sampling` are used. Of several, later ones lie over earlier ones.
        policy: Policy directory, hub name, `builtin`, a `.ckpt` file written by `fit`, or directory of a peft adapter.
        out: Directory for samples.jsonl, summary.json and curves.png, or for one such directory per benchmark.
        num_samples: Samples per problem (the paper: 256).
        name: What tables call this policy; default: the last part of `out`.
        benchmarks: Name -> source of problems, as JSON or as a YAML file; default: the problems of `split`.
        split: Which problems of the YAML: `test`, `validation`, or `train`, which shows what training learnt by heart.
        problems_per_chunk: Problems sampled together, while the chunk before is being scored.
        shard: INDEX/COUNT: only this share of the problems, in a process of its own, on a GPU of its own
            (`CUDA_VISIBLE_DEVICES=1 ... --shard 1/4`). The process that finishes last joins the shares.
        temperatures: Several instead of that of the YAML, such as .6,.8,1,1.2: an output each, in
            `out`/temperature-0.6 and so on, which `compare out` lays side by side.
        told_k: Numbers of tries for `{k}` in the template, instead of `data.told_k` or `num_samples`:
            `same` names the k that is reported (1, 2, 4, ..., with `num_samples` samples of each problem for every one)
            and joins the points in told.json; 1,8,128 tells these. An output each, in `out`/told-8 and so on.
        select: Also realised best-of-k, the reward of the one of k samples that is chosen without hidden tests, in
            realised.json: `public` (tests that the statement shows), `agreement` (of outputs on further inputs),
            `codet` (both at once, and inputs that the samples propose), `majority` (of answers), `likelihood`; several
            with commas, and `public+agreement` breaks ties of the first with the second.
        predict_up_to: Also max@k and pass@k at k above `num_samples`, up to this, as a model of how problems differ
            predicts them (docs/prediction.md); dashed in the figure.
        until_width: Stop early, when the 95 % interval of max@k is narrower than this, from end to end, at every k up
            to `num_samples`; beyond the samples drawn so far it is the predicted one. All problems are sampled alike,
            in sixteen rounds at most.
        overrides: Keys laid over the YAML.

    Raises:
        ValueError: a setting is wrong, or `out` holds samples of other settings.
    """
    check_counts(num_samples=num_samples, problems_per_chunk=problems_per_chunk)
    if not Path(config).is_file():
        raise ValueError(f"--config: {config} is not a file")
    # These import torch, which `--help` must not wait for.
    from maxk_lightning.commands.evaluate.policy import evaluate_policy
    from maxk_lightning.commands.evaluate.request import Request
    from maxk_lightning.commands.evaluate.shards import parse_shard
    from maxk_lightning.commands.evaluate.told import parse_told_ks

    if predict_up_to is not None and predict_up_to <= num_samples:
        raise ValueError(f"--predict_up_to is {predict_up_to}, must be above --num_samples, which is {num_samples}")
    if until_width is not None and not until_width > 0.0:
        raise ValueError(f"--until_width is {until_width}, must be above 0")
    if benchmarks and split != "test":
        raise ValueError(f"--split {split} names problems of the YAML: it does not go with --benchmarks")
    if told_k is not None and (temperatures is not None or shard is not None):
        raise ValueError("--told_k does not go with --temperatures or --shard")
    if until_width is not None and shard is not None:
        raise ValueError("--until_width needs the samples of all problems: it does not go with --shard")
    request = Request(
        config=config,
        policy=policy,
        out=Path(out),
        num_samples=num_samples,
        name=name or Path(out).resolve().name,
        benchmarks=benchmarks,
        split=split,
        problems_per_chunk=problems_per_chunk,
        shard=None if shard is None else parse_shard(shard),
        temperatures=[] if temperatures is None else parse_temperatures(temperatures),
        told_ks=[] if told_k is None else parse_told_ks(told_k, num_samples),
        select=select,
        predict_up_to=predict_up_to or (0 if until_width is None else num_samples),
        until_width=until_width,
        overrides=overrides,
    )
    evaluate_policy(request)


def parse_temperatures(text: str) -> list[float]:
    """Parse ".6,.8".

    >>> parse_temperatures(".6,.8")
    [0.6, 0.8]

    Raises:
        ValueError: it is not a list of different positive numbers.
    """
    try:
        temperatures = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        temperatures = []
    if not temperatures or not all(0.0 < each < math.inf for each in temperatures):
        raise ValueError(f"--temperatures is {text!r}, must be positive numbers with commas between, such as .6,.8,1")
    if len(set(temperatures)) < len(temperatures):
        raise ValueError(f"--temperatures is {text!r}, in which a number appears twice")
    return temperatures
