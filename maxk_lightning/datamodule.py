"""The LightningDataModule: orders rollouts of the prompt stream, and serves rollouts to the training loop."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from maxk_lightning.data import Builtin, Curriculum, LoadReport, ProblemSource, PromptStream, PromptTemplate
from maxk_lightning.data.curriculum import CurriculumStream
from maxk_lightning.data.report import report_of
from maxk_lightning.objectives import Objective
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts.buffer import RolloutBuffer
from maxk_lightning.rollouts.ranks import Ranks, ranks_of
from maxk_lightning.rollouts.refill import Refill
from maxk_lightning.rollouts.rollout import Group, Order, Samples
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import LARGEST, Problem, Prompt, Sampling

logger = logging.getLogger(__name__)
LONGEST_TOLD_K = 128
"Number of tries with which the lengths of prompts are measured."
EvalStage = Literal["validate", "test", "predict"]
STAGES = {"train": "fit", "validation": "validate", "test": "test"}
"Split -> stage of the Trainer."


class PromptDataModule(LightningDataModule):
    """Problems and prompts for every stage.

    One Lightning epoch is one rollout, so `trainer.max_epochs` counts rollouts. Everything random is a function of
    (seed, rollout index), so a resumed run sees what an undisturbed one would have seen.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        train: ProblemSource = Builtin(split="train"),  # noqa: B008  (immutable)
        validation: ProblemSource | None = Builtin(split="validation"),  # noqa: B008
        test: ProblemSource | None = Builtin(split="test"),  # noqa: B008
        template: PromptTemplate = PromptTemplate(),  # noqa: B008
        policy: str = "builtin",
        prompts_per_rollout: int = 8,
        prompts_per_step: int | None = None,
        num_ppo_iterations: int = 3,
        refill: int = 0,
        curriculum: Curriculum | None = None,
        told_k: int | None = None,
        max_prompt_tokens: int = 512,
        seed: int = 42,
    ) -> None:
        """Describe the data; files are read in `setup`.

        Args:
            train: Problems to train on.
            validation: Problems of `validate` and of the validation in `fit`; None: no validation.
            test: Problems of `test` and `predict`.
            template: Text around the statement.
            policy: Policy whose tokenizer renders prompts; training fills in `model.policy`.
            prompts_per_rollout: Prompts of a rollout, over all ranks.
            prompts_per_step: Prompts of an optimizer step, over all ranks; None: the whole rollout. Must divide the
                rollout; need not be a multiple of the number of ranks.
            num_ppo_iterations: Passes over each rollout (the paper: 3 off-policy, 1 on-policy).
            refill: Most further batches of prompts per rollout, sampled until `prompts_per_rollout` groups have credit;
                0: none, as in the paper. For tasks on which most groups teach nothing (`train/zero_credit_fraction`).
                Steps are made of the first groups with credit, and of groups without where those run out. Their
                gradient has the direction of an unfiltered one in expectation and is longer by
                1 / `rollout/credit_fraction`; a KL penalty sees these groups alone. `train/reward` and the like are
                means over all samples; because sampling stops when enough groups are found, these means are biased
                towards rollouts that found them early. Further problems are drawn from all that the rollout does not
                have.
            curriculum: Pass over problems whose groups would probably have no credit, by their earlier rewards;
                None: every problem has its turn in every pass. `rollout/passed_over` counts them.
            told_k: Number of tries for `{k}` in the template where `objectives.ToldK` draws none: in evaluations, in
                `best`, and with other objectives. None: the number of completions.
            max_prompt_tokens: Longer prompts are left out, and counted in the log (the paper: 512).
            seed: Seed of all orders and samples; training fills in `seed_everything`.

        Raises:
            ValueError: a count below 1, `refill` below 0, or `prompts_per_step` does not divide
                `prompts_per_rollout`.
        """
        super().__init__()
        self.sources: dict[str, ProblemSource | None] = {
            "fit": train,
            "validate": validation,
            "test": test,
            "predict": test,
        }
        self.template = template
        self.policy_name = policy
        self.prompts_per_rollout = prompts_per_rollout
        self.prompts_per_step = prompts_per_step or prompts_per_rollout
        self.num_ppo_iterations = num_ppo_iterations
        self.refill = refill
        self.curriculum = curriculum
        self.told_k = told_k
        self.told_ks: Sequence[int] = ()
        "Numbers of tries that training prompts tell; empty: they all tell the same. Training fills it in."
        self.max_prompt_tokens = max_prompt_tokens
        self.seed = seed
        for name in ("prompts_per_rollout", "prompts_per_step", "num_ppo_iterations", "max_prompt_tokens", "told_k"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"data.{name} is {getattr(self, name)}, must be at least 1 and at most {LARGEST}")
        if refill < 0:
            raise ValueError(f"data.refill is {refill}, must be at least 0")
        if self.prompts_per_rollout % self.prompts_per_step:
            raise ValueError(
                f"data.prompts_per_step ({self.prompts_per_step}) must divide "
                f"data.prompts_per_rollout ({self.prompts_per_rollout})"
            )
        self.tokenizer: Any = None
        self.problems: dict[str, Sequence[Problem]] = {}
        self.reports: dict[str, LoadReport] = {}
        self.buffers: dict[str, RolloutBuffer] = {}
        "Stage -> the rollout that its dataloader reads."
        self.drawn: CurriculumStream | None = None
        "What the curriculum knows and has chosen; None: without `curriculum`."

    def setup(self, stage: str) -> None:
        """Read the problems that a stage needs, unless they have been read, and make its empty buffers.

        Raises:
            ValueError: naming file, line and reason, or a source without a usable problem, or too few for `refill`.
        """
        for name in stages(stage):
            if name not in self.problems:
                source = self.sources[name]
                self.problems[name] = [] if source is None else self.read(source, name)
            self.buffers[name] = self._empty_buffer(name)
        if stage == "fit" and self.curriculum is not None:
            self.drawn = CurriculumStream(self.curriculum, self._stream)
        if stage == "fit" and self.refill and len(self.problems["fit"]) <= self.prompts_per_rollout:
            raise ValueError(
                f"data.refill has no effect: a rollout of {self.prompts_per_rollout} prompts has all "
                f"{len(self.problems['fit'])} problems of data.train"
            )

    def read(self, source: ProblemSource, name: str) -> list[Problem]:
        """Read the problems of a source whose prompts are short enough; `reports[name]` says what was left out.

        Raises:
            ValueError: naming file, line and reason, or no problem is usable.
        """
        self.tokenizer = self.tokenizer or load_tokenizer(self.policy_name)
        self.template.check(self.tokenizer)
        problems = source.load()
        _check_loaded(problems, type(source).__name__)
        told_k = max(self.told_ks, default=self.told_k or LONGEST_TOLD_K)
        lengths = [len(prompt.token_ids) for prompt in self.render(problems, [0] * len(problems), told_k)]
        kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= self.max_prompt_tokens]
        report = self.reports[name] = report_of(source, problems, type(source).__name__)
        too_long = {problem.id for problem in problems} - {problem.id for problem in kept}
        report.drop(too_long, f"prompt longer than data.max_prompt_tokens ({self.max_prompt_tokens})")
        rank_zero_info("data (%s): %s", name, report.text())
        logger.info("%s: %s problems, prompts of at most %s tokens", name, len(kept), max(lengths, default=0))
        if not problems:
            raise ValueError(f"data ({name}): no usable problem; {report.text()}")
        if not kept:
            raise ValueError(f"data ({name}): no problem has a prompt of at most {self.max_prompt_tokens} tokens")
        return kept

    def render(self, problems: Sequence[Problem], seeds: Sequence[int], told_k: int) -> list[Prompt]:
        """Render prompts as the policy reads them, with the seeds of their groups, and `told_k` in place of `{k}`."""
        return [
            self.template.render(problem, self.tokenizer, seed, told_k)
            for problem, seed in zip(problems, seeds, strict=True)
        ]

    def _render_training(self, problem: Problem, seed: int, sampling: Sampling) -> Prompt:
        """A training prompt, for which a number of tries is drawn by its seed where the objective wants one."""
        if not self.told_ks:
            return self.template.render(problem, self.tokenizer, seed, self.told_k or sampling.num_completions)
        drawn = self.told_ks[derive_seed(seed, "told k") % len(self.told_ks)]
        return replace(self.template.render(problem, self.tokenizer, seed, drawn), told_k=drawn)

    def order(self, index: int, sampling: Sampling, places: range | None = None) -> Order:
        """Order what this rank samples for a training rollout.

        Args:
            index: Number of the rollout.
            sampling: Settings of the completions.
            places: Places of the rollout's prompts; None: those it begins with. After these come all problems that are
                not among them, in an order of this rollout's own, for `refill`.

        Raises:
            ValueError: there are fewer problems than places.
        """
        stream = self._stream
        places = range(self.prompts_per_rollout) if places is None else places
        positions = self._positions(index, sampling)
        further = stream.others(positions) if places.stop > len(positions) else []
        if places.stop > len(positions) + len(further):
            raise ValueError(
                f"data.train: the rollout in the checkpoint has {places.stop} prompts, too many for the problems here"
            )
        problems, seeds = [], []
        for place in self._ranks.own(places, first=places.start):
            is_further = place >= len(positions)
            number = further[place - len(positions)] if is_further else stream.index(positions[place])
            problems.append(self.problems["fit"][number])
            names = ("refill", index, place) if is_further else ("fit", positions[place])
            seeds.append(derive_seed(self.seed, *names))
        prompts = [
            self._render_training(problem, seed, sampling) for problem, seed in zip(problems, seeds, strict=True)
        ]
        return Order(index=index, problems=problems, prompts=prompts, sampling=sampling)

    def refill_of(self, index: int, sampling: Sampling, objective: Objective) -> Refill | None:
        """Return how far a training rollout may be refilled, by the credits of this objective; None: not at all."""
        if not self.refill:
            return None
        return Refill(
            max_batches=self.refill,
            num_wanted=self.prompts_per_rollout,
            num_places=self.prompts_per_rollout + len(self._stream.others(self._positions(index, sampling))),
            objective=objective,
            orders=partial(self.order, index, sampling),
        )

    def eval_order(self, stage: EvalStage, sampling: Sampling) -> Order:
        """Order what this rank samples for an evaluation; seeds do not change, so evaluations are paired."""
        problems = self._ranks.own(list(self.problems[stage]))
        seeds = [derive_seed(self.seed, stage, problem.id) for problem in problems]
        prompts = self.render(problems, seeds, self.told_k or sampling.num_completions)
        return Order(index=0, problems=problems, prompts=prompts, sampling=sampling)

    @property
    def schedule(self) -> dict[str, int]:
        """Settings that decide the optimizer steps of a rollout: a run resumed within one must have the same."""
        names = ("prompts_per_rollout", "prompts_per_step", "num_ppo_iterations", "seed")
        return {name: getattr(self, name) for name in names}

    def train_dataloader(self) -> DataLoader[Samples]:
        """Steps of the current rollout, for every PPO iteration."""
        return _loader(self.buffers["fit"])

    def val_dataloader(self) -> DataLoader[Samples] | list[Any]:
        """Samples of the validation problems."""
        return _loader(self.buffers["validate"]) if self.problems["validate"] else []

    def test_dataloader(self) -> DataLoader[Samples]:
        """Samples of the test problems."""
        return _loader(self.buffers["test"])

    def predict_dataloader(self) -> DataLoader[Samples]:
        """Samples of the problems to predict."""
        return _loader(self.buffers["predict"])

    def transfer_batch_to_device(self, batch: Samples, device: torch.device, dataloader_idx: int) -> Samples:
        """Leave samples on the host: `training_step` moves one micro-batch at a time."""
        return batch

    def note(self, index: int, groups: Sequence[Group]) -> None:
        """Let the curriculum learn from a rollout, once; all ranks must call this together."""
        if self.drawn is None:
            return
        rewards = dict(self._ranks.gather([(group.problem.id, group.rewards) for group in groups]))
        numbers = {problem.id: number for number, problem in enumerate(self.problems["fit"]) if problem.id in rewards}
        self.drawn.note(index, {numbers[name]: values for name, values in rewards.items()})

    def num_passed_over(self, index: int) -> int:
        """Count the problems that the curriculum passed over on the way to a rollout."""
        return 0 if self.drawn is None else self.drawn.num_passed_over[index]

    def state_dict(self) -> dict[str, Any]:
        """Return what the curriculum knows, for a checkpoint."""
        return {} if self.drawn is None else {"curriculum": self.drawn.state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what the curriculum knew."""
        if self.drawn is not None and "curriculum" in state_dict:
            self.drawn.load_state(state_dict["curriculum"])

    def _positions(self, index: int, sampling: Sampling) -> Sequence[int]:
        """Positions in the stream of the prompts that a rollout begins with."""
        if self.drawn is not None:
            return self.drawn.positions(index, self.prompts_per_rollout, sampling.num_completions)
        return range(index * self.prompts_per_rollout, (index + 1) * self.prompts_per_rollout)

    @property
    def _stream(self) -> PromptStream:
        return PromptStream(num_problems=len(self.problems["fit"]), seed=self.seed)

    @property
    def _ranks(self) -> Ranks:
        return Ranks() if self.trainer is None else ranks_of(self.trainer)

    def _empty_buffer(self, stage: str) -> RolloutBuffer:
        if stage == "fit":
            sizes = (self.prompts_per_rollout, self.prompts_per_step, self.num_ppo_iterations)
            return RolloutBuffer(*sizes, ranks=self._ranks, seed=self.seed)
        return RolloutBuffer(len(self.problems[stage]), self._ranks.world_size, ranks=self._ranks)


def _check_loaded(problems: Sequence[Any], source: str) -> None:
    """Raise ValueError unless a source gave problems whose ids differ; it may be a user's own."""
    seen = set()
    for place, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise ValueError(
                f"data: {source}.load() gave a {type(problem).__name__} at place {place}, must give "
                "maxk_lightning.types.Problem objects"
            )
        if problem.id in seen:
            raise ValueError(f"data: {source}.load() gave two problems of id {problem.id!r}; ids must differ")
        seen.add(problem.id)


def stages(stage: str) -> tuple[str, ...]:
    """List the stages whose problems a stage of the Trainer needs."""
    return ("fit", "validate") if stage == "fit" else (stage,)


def _loader(buffer: RolloutBuffer) -> DataLoader[Samples]:
    # In this process and item by item: `training.reference` knows completions by identity, so none may be copied.
    return DataLoader(buffer, batch_size=None, num_workers=0)
