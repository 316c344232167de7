"""From a policy and the YAML of a run to samples.jsonl, summary.json and curves.png."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from maxk_lightning.commands.evaluate.collect_samples import Settings, Task, collect_samples, read_seconds
from maxk_lightning.commands.evaluate.realised import print_realised, realised_curves
from maxk_lightning.commands.evaluate.request import Output, Request
from maxk_lightning.commands.evaluate.shards import join_shards
from maxk_lightning.commands.evaluate.summary_table import print_summary
from maxk_lightning.commands.evaluate.told import write_told
from maxk_lightning.commands.evaluate.until_width import collect_until
from maxk_lightning.commands.inputs import code_digest, digest_of
from maxk_lightning.commands.loadable import loadable
from maxk_lightning.commands.trainer import PartsCLI
from maxk_lightning.data import Builtin, JsonLines, ProblemSource
from maxk_lightning.data.pipelines import VARIANTS
from maxk_lightning.datamodule import STAGES, PromptDataModule
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
from maxk_lightning.selection import Then, parse_selectors
from maxk_lightning.types import Problem, Sampling


def evaluate_policy(request: Request) -> None:
    """Evaluate on every benchmark and print a table for each.

    Raises:
        ValueError: a setting is wrong, or an output holds samples of other settings.
    """
    home = request.shard.directory(request.out) if request.shard else request.out
    policy = loadable(request.policy, home / "policy")
    settings = read_run_settings(["--config", request.config, *request.overrides], policy)
    if request.told_ks and not settings.data.template.tells_k:
        raise ValueError("--told_k: data.template has no {k}, so prompts tell no number of tries")
    selectors = [] if request.select is None else parse_selectors(request.select, settings.reward)
    evaluation = _Evaluation(request=request, policy=policy, settings=settings, selectors=selectors)
    try:
        for benchmark, source in (request.benchmarks or _source_of(settings.data, request.split)).items():
            evaluation.run(benchmark, source)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluation:
    """A request with everything that it needs to be answered."""

    request: Request
    "What is asked for."
    policy: str
    "The policy, as a directory where it was a checkpoint."
    settings: RunSettings
    "What the YAML says."
    selectors: Sequence[Then]
    "Whose realised best-of-k is measured."
    console: Console = field(default_factory=Console)
    "Where to print."

    def run(self, benchmark: str, source: ProblemSource) -> None:
        """All outputs of a benchmark."""
        data, request = self.settings.data, self.request
        problems = data.read(source, benchmark)
        check_problems(self.settings.reward, problems)
        told: dict[int, Summary] = {}
        for output in request.outputs(benchmark):
            summary = self._fill(output, benchmark, problems)
            if summary is not None and output.told_k is not None:
                told[output.told_k] = summary
        write_told(told, request.home(benchmark), request.name, self.console)

    def _fill(self, output: Output, benchmark: str, problems: Sequence[Problem]) -> Summary | None:
        """Sample, score and summarise one output; None while other shards are at work."""
        task = self._task(output, benchmark, problems)
        samples = self._collect(task, output.directory, benchmark)
        if samples is None:
            self.console.print(f"{benchmark}: this shard is done; the last one to finish joins them")
            return None
        write_statements(problems, output.directory)
        summary = self._summarise(samples, output, benchmark, task.sampling)
        print_summary(summary, self.console)
        if self.selectors:
            self._select(task, samples, output.directory, summary)
        self.console.print(f"wrote {output.directory}/samples.jsonl, summary.json and curves.png", soft_wrap=True)
        return summary

    def _task(self, output: Output, benchmark: str, problems: Sequence[Problem]) -> Task:
        data, num_samples = self.settings.data, self.request.num_samples
        # Seeds depend on run seed and problem alone, so policies, and temperatures, are compared in pairs.
        seeds = [derive_seed(data.seed, "evaluate", problem.id) for problem in problems]
        sampling = replace(self.settings.sampling, num_completions=num_samples)
        if output.temperature is not None:
            sampling = replace(sampling, temperature=output.temperature)
        return Task(
            problems=problems,
            prompts=data.render(problems, seeds, output.told_k or data.told_k or num_samples),
            sampling=sampling,
            problems_per_chunk=self.request.problems_per_chunk,
        )

    def _collect(self, task: Task, out: Path, benchmark: str) -> list[Sample] | None:
        """All samples of the task, or as many as `until_width` takes; None while other shards are at work."""
        engine, reward, shard = self.settings.engine, self.settings.reward, self.request.shard
        fixed = _fixed_settings(task, self.settings, self.policy, benchmark)
        if self.request.until_width is not None:
            return collect_until(self.request.until_width, task, engine, reward, out, fixed)
        if shard is None:
            return collect_samples(task, engine, reward, out, fixed)
        collect_samples(shard.share(task), engine, reward, shard.directory(out), fixed)
        return join_shards(task, shard, out)

    def _summarise(self, samples: Sequence[Sample], output: Output, benchmark: str, sampling: Sampling) -> Summary:
        if all(sample.reward is None for sample in samples):
            raise ValueError(
                f"{benchmark}: none of {len(samples)} completions could be scored, so there is nothing to summarise; "
                f"mend the reward and choose another --out ({output.directory})"
            )
        analysing_from = time.perf_counter()
        origin = Origin(
            policy=self.request.policy,
            seed=self.settings.data.seed,
            temperature=sampling.temperature,
            training=read_training(Path(resolve_policy(self.policy))),
        )
        summary = summarise(
            samples,
            name=output.title,
            benchmark=benchmark,
            seconds=read_seconds(output.directory),
            origin=origin,
            predict_up_to=self.request.predict_up_to,
        )
        _draw(Run(output.directory, summary))
        seconds = replace(summary.seconds, analysing=time.perf_counter() - analysing_from)
        summary = replace(summary, seconds=seconds)
        write_summary(summary, output.directory / "summary.json")
        return summary

    def _select(self, task: Task, samples: Sequence[Sample], out: Path, summary: Summary) -> None:
        """Measure what selectors realise, beside the summary."""
        realised = realised_curves(task.problems, task.prompts, samples, self.selectors, self.settings.data.seed)
        write_realised(realised, out)
        print_realised(realised, summary.max_at_k, self.console)
        _draw(Run(out, summary))


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


def _fixed_settings(task: Task, settings: RunSettings, policy: str, benchmark: str) -> Settings:
    """What must stay the same for as long as an output is added to."""
    return {
        "benchmark": benchmark,
        "policy": policy_digest(policy),
        "problems": digest_of(task.problems),
        "prompts": digest_of(task.prompts),
        "engine": type(settings.engine).__name__,
        "reward": settings.reward_config,
        "reward_code": code_digest(settings.reward),
        "problems_per_chunk": task.problems_per_chunk,
        **asdict(task.sampling),
    }


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
                parts.append(f"{path.name} {size} {digest_of([file.read()])}")
    return digest_of(parts)


def _source_of(data: PromptDataModule, split: str) -> dict[str, ProblemSource]:
    source = data.sources[STAGES[split]]
    if source is None:
        raise ValueError(f"data.{split} is null in the YAML: give it, or --benchmarks")
    return {_benchmark_name(source): source}


def _benchmark_name(source: ProblemSource) -> str:
    if isinstance(source, Builtin):
        return f"{VARIANTS[source.variant].directory.replace('_', '-')}-{source.split}"
    return Path(source.path).stem if isinstance(source, JsonLines) else type(source).__name__
