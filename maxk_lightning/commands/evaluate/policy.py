"""From a policy and the YAML of a run to samples.jsonl, summary.json and curves.png."""

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from maxk_lightning.commands.evaluate.collect_samples import Settings, Task, collect_samples, read_seconds
from maxk_lightning.commands.evaluate.realised import print_realised, realised_curves
from maxk_lightning.commands.evaluate.shards import Shard, join_shards
from maxk_lightning.commands.evaluate.summary_table import print_summary
from maxk_lightning.commands.evaluate.told import write_told
from maxk_lightning.commands.evaluate.until_width import collect_until
from maxk_lightning.commands.export import export
from maxk_lightning.commands.trainer import PartsCLI
from maxk_lightning.data import Builtin, JsonLines, ProblemSource
from maxk_lightning.data.pipelines import VARIANTS
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.evaluation import curves
from maxk_lightning.evaluation.origin import TRAINING, Origin, read_training
from maxk_lightning.evaluation.realised import write_realised
from maxk_lightning.evaluation.runs import Run, selectors_of, write_statements
from maxk_lightning.evaluation.samples import Sample
from maxk_lightning.evaluation.summary import Summary, summarise, write_summary
from maxk_lightning.policy import resolve_policy
from maxk_lightning.rewards import Reward, check_problems
from maxk_lightning.rollouts import ManagedEngine, RolloutEngine
from maxk_lightning.seeds import derive_seed
from maxk_lightning.selection import parse_selectors
from maxk_lightning.types import Sampling


def evaluate_policy(
    config: str,
    policy: str,
    out: Path,
    num_samples: int,
    name: str,
    benchmarks: Mapping[str, ProblemSource] | None,
    problems_per_chunk: int,
    shard: Shard | None,
    temperatures: Sequence[float],
    told_ks: Sequence[int],
    select: str | None,
    predict_up_to: int,
    until_width: float | None,
    overrides: Sequence[str],
) -> None:
    """Evaluate on every benchmark and print a table for each; the arguments are those of the command.

    Raises:
        ValueError: a setting is wrong, or an output holds samples of other settings.
    """
    given = policy
    if policy.endswith(".ckpt"):
        policy = exported(policy, (shard.directory(out) if shard else out) / "policy")
    settings = read_run_settings(["--config", config, *overrides], policy)
    console = Console()
    if told_ks and not settings.data.template.tells_k:
        raise ValueError("--told_k: data.template has no {k}, so prompts tell no number of tries")
    selectors = [] if select is None else parse_selectors(select, settings.reward)
    try:
        for benchmark, source in (benchmarks or _test_source(settings.data)).items():
            problems = settings.data.read(source, benchmark)
            check_problems(settings.reward, problems)
            # Seeds depend on run seed and problem alone, so policies, and temperatures, are compared in pairs.
            seeds = [derive_seed(settings.data.seed, "evaluate", problem.id) for problem in problems]
            told: dict[int, Summary] = {}
            for temperature, told_k in product(temperatures or (None,), told_ks or (None,)):
                directory, title = _place(out, name, temperature, told_k)
                directory = directory / benchmark if benchmarks else directory
                prompts = settings.data.render(problems, seeds, told_k or settings.data.told_k or num_samples)
                task = Task(
                    problems=problems,
                    prompts=prompts,
                    sampling=_sampling(settings.sampling, num_samples, temperature),
                    problems_per_chunk=problems_per_chunk,
                )
                fixed = _fixed_settings(task, settings, policy, benchmark)
                samples = _collect(task, settings, directory, shard, fixed, until_width)
                if samples is None:
                    console.print(f"{benchmark}: this shard is done; the last one to finish joins them")
                    continue
                write_statements(problems, directory)
                origin = Origin(
                    policy=given,
                    seed=settings.data.seed,
                    temperature=task.sampling.temperature,
                    training=read_training(Path(resolve_policy(policy))),
                )
                summary = _summarise(samples, directory, title, benchmark, origin, predict_up_to)
                print_summary(summary, console)
                if selectors:
                    realised = realised_curves(problems, prompts, samples, selectors, settings.data.seed)
                    write_realised(realised, directory)
                    print_realised(realised, summary.max_at_k, console)
                    _draw(Run(directory, summary))
                console.print(f"wrote {directory}/samples.jsonl, summary.json and curves.png", soft_wrap=True)
                if told_k is not None:
                    told[told_k] = summary
            write_told(told, out / benchmark if benchmarks else out, name, console)
    finally:
        if isinstance(settings.engine, ManagedEngine):
            settings.engine.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What evaluation takes from the YAML of a run."""

    data: PromptDataModule
    "Data module, for template, test problems and seed."
    engine: RolloutEngine
    "Rollout engine."
    reward: Reward
    "Reward."
    sampling: Sampling
    "Evaluation sampling."
    reward_config: str
    "Configuration of the reward."


def read_run_settings(args: Sequence[str], policy: str) -> RunSettings:
    """Read a run's YAML and what lies over it, under the very schema that `fit` has, for another policy."""
    cli = PartsCLI([*args, "--model.policy", policy])
    rollout, configs = cli.config_init["rollout"], cli.config["rollout"]
    return RunSettings(
        data=cli.config_init["data"],
        engine=rollout.engine,
        reward=rollout.eval_reward,
        sampling=rollout.eval_sampling,
        reward_config=_config_of_reward(configs),
    )


def _config_of_reward(rollout: Any) -> str:
    """What decides rewards, as a text."""
    configs = rollout.as_dict()
    return str(configs["eval_reward"] or configs["rewards"] or configs["reward"])


def _place(out: Path, name: str, temperature: float | None, told_k: int | None) -> tuple[Path, str]:
    """Directory and name of the samples of a temperature, or of a told k; None: of the YAML's."""
    if temperature is not None:
        return out / f"temperature-{temperature:g}", f"{name} T={temperature:g}"
    if told_k is not None:
        return out / f"told-{told_k}", f"{name} told {told_k}"
    return out, name


def _sampling(sampling: Sampling, num_samples: int, temperature: float | None) -> Sampling:
    sampling = replace(sampling, num_completions=num_samples)
    return sampling if temperature is None else replace(sampling, temperature=temperature)


def _fixed_settings(task: Task, settings: RunSettings, policy: str, benchmark: str) -> Settings:
    """What must stay the same for as long as an output is added to."""
    return {
        "benchmark": benchmark,
        "policy": policy_digest(policy),
        "prompts": _digest(repr(task.prompts).encode()),
        "engine": type(settings.engine).__name__,
        "reward": settings.reward_config,
        "problems_per_chunk": task.problems_per_chunk,
        **asdict(task.sampling),
    }


def _collect(
    task: Task, settings: RunSettings, out: Path, shard: Shard | None, fixed: Settings, until_width: float | None
) -> list[Sample] | None:
    """All samples of the task, or as many as `until_width` takes; None while other shards are at work."""
    engine, reward = settings.engine, settings.reward
    if until_width is not None:
        return collect_until(until_width, task, engine, reward, out, fixed)
    if shard is None:
        return collect_samples(task, engine, reward, out, fixed)
    collect_samples(shard.share(task), engine, reward, shard.directory(out), fixed)
    return join_shards(task, shard, out)


def _summarise(
    samples: Sequence[Sample], out: Path, name: str, benchmark: str, origin: Origin, predict_up_to: int
) -> Summary:
    analysing_from = time.perf_counter()
    summary = summarise(
        samples,
        name=name,
        benchmark=benchmark,
        seconds=read_seconds(out),
        origin=origin,
        predict_up_to=predict_up_to,
    )
    _draw(Run(out, summary))
    seconds = replace(summary.seconds, analysing=time.perf_counter() - analysing_from)
    summary = replace(summary, seconds=seconds)
    write_summary(summary, out / "summary.json")
    return summary


def _draw(run: Run) -> None:
    """Draw curves.png: max@k and pass@k, and what selectors realised where realised.json says."""
    curves([run], selectors=selectors_of([run])).savefig(run.path / "curves.png")


def policy_digest(policy: str) -> str:
    """A digest of the files of a policy directory, so that another policy of the same name is noticed; else the name.

    Of large files the size and the last 64 KiB stand for the whole: training changes every weight.
    """
    directory = Path(resolve_policy(policy))
    if not directory.is_dir():
        return policy
    parts = []
    for path in sorted(directory.glob("*")):
        if path.suffix in (".safetensors", ".bin", ".json") and path.name != TRAINING:
            with path.open("rb") as file:
                size = path.stat().st_size
                file.seek(max(0, size - (64 << 10)))
                parts.append(f"{path.name} {size} {_digest(file.read())}")
    return _digest("\n".join(parts).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _test_source(data: PromptDataModule) -> dict[str, ProblemSource]:
    source = data.sources["test"]
    if source is None:
        raise ValueError("data.test is null in the YAML: give it, or --benchmarks")
    return {_benchmark_name(source): source}


def exported(ckpt: str, directory: Path) -> str:
    """The policy of a checkpoint as a directory, exported anew: the file may hold other weights than the last time."""
    shutil.rmtree(directory, ignore_errors=True)
    export(ckpt, str(directory))
    return str(directory)


def _benchmark_name(source: ProblemSource) -> str:
    if isinstance(source, Builtin):
        return f"{VARIANTS[source.variant].directory.replace('_', '-')}-{source.split}"
    return Path(source.path).stem if isinstance(source, JsonLines) else type(source).__name__
