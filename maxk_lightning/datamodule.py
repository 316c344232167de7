"""The LightningDataModule: orders rollouts of the prompt stream, and serves rollouts to the training loop."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from maxk_lightning.data import Builtin, LoadReport, ProblemSource, PromptStream, PromptTemplate
from maxk_lightning.data.report import report_of
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts.buffer import RolloutBuffer
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Order, Samples
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, Prompt, Sampling

logger = logging.getLogger(__name__)
EvalStage = Literal["validate", "test", "predict"]


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
        max_prompt_tokens: int = 512,
        seed: int = 42,
    ) -> None:
        """Describe the data; files are read in `setup`.

        Args:
            train: Problems to train on.
            validation: Problems of `validate` and of the validation in `fit`; None: no validation.
            test: Problems of `test` and `predict`.
            template: Text around the statement.
            policy: Whose tokenizer renders prompts; training fills in `model.policy`.
            prompts_per_rollout: Prompts of a rollout, over all ranks.
            prompts_per_step: Prompts of an optimizer step, over all ranks; None: the whole rollout. Must divide the
                rollout; need not be a multiple of the number of ranks.
            num_ppo_iterations: Passes over each rollout (the paper: 3 off-policy, 1 on-policy).
            max_prompt_tokens: Longer prompts are left out, and counted in the log (the paper: 512).
            seed: Of all orders and samples; training fills in `seed_everything`.

        Raises:
            ValueError: a count below 1, or `prompts_per_step` does not divide `prompts_per_rollout`.
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
        self.max_prompt_tokens = max_prompt_tokens
        self.seed = seed
        for name in ("prompts_per_rollout", "prompts_per_step", "num_ppo_iterations", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, must be at least 1")
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

    def setup(self, stage: str) -> None:
        """Read the problems that a stage needs, unless they have been read, and make its empty buffers.

        Raises:
            ValueError: naming file, line and reason, or a source without a usable problem.
        """
        for name in stages(stage):
            if name not in self.problems:
                source = self.sources[name]
                self.problems[name] = [] if source is None else self.read(source, name)
            self.buffers[name] = self._empty_buffer(name)

    def read(self, source: ProblemSource, name: str) -> list[Problem]:
        """The problems of a source whose prompts are short enough; `reports[name]` says what was left out.

        Raises:
            ValueError: naming file, line and reason, or no problem is usable.
        """
        self.tokenizer = self.tokenizer or load_tokenizer(self.policy_name)
        self.template.check(self.tokenizer)
        problems = source.load()
        lengths = [len(prompt.token_ids) for prompt in self.render(problems, [0] * len(problems))]
        kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= self.max_prompt_tokens]
        report = self.reports[name] = report_of(source, problems, type(source).__name__)
        too_long = {problem.id for problem in problems} - {problem.id for problem in kept}
        report.drop(too_long, f"prompt longer than data.max_prompt_tokens ({self.max_prompt_tokens})")
        rank_zero_info("data (%s): %s", name, report.text())
        logger.info("%s: %s problems, prompts of at most %s tokens", name, len(kept), max(lengths, default=0))
        if not kept:
            raise ValueError(f"data ({name}): no problem has a prompt of at most {self.max_prompt_tokens} tokens")
        return kept

    def render(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Prompt]:
        """Prompts as the policy reads them, with the seeds of their groups."""
        return [
            self.template.render(problem, self.tokenizer, seed) for problem, seed in zip(problems, seeds, strict=True)
        ]

    def order(self, index: int, sampling: Sampling) -> Order:
        """Order what this rank samples for a training rollout."""
        stream = PromptStream(num_problems=len(self.problems["fit"]), seed=self.seed)
        start = index * self.prompts_per_rollout
        places = self._ranks.own(range(start, start + self.prompts_per_rollout))
        problems = [self.problems["fit"][stream.index(place)] for place in places]
        seeds = [derive_seed(self.seed, "fit", place) for place in places]
        return Order(index=index, problems=problems, prompts=self.render(problems, seeds), sampling=sampling)

    def eval_order(self, stage: EvalStage, sampling: Sampling) -> Order:
        """Order what this rank samples for an evaluation; seeds do not change, so evaluations are paired."""
        problems = self._ranks.own(list(self.problems[stage]))
        seeds = [derive_seed(self.seed, stage, problem.id) for problem in problems]
        return Order(index=0, problems=problems, prompts=self.render(problems, seeds), sampling=sampling)

    @property
    def schedule(self) -> dict[str, int]:
        """What decides the optimizer steps of a rollout: a run resumed amid one must have the same."""
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

    @property
    def _ranks(self) -> Ranks:
        if self.trainer is None:
            return Ranks()
        return Ranks(self.trainer.global_rank, self.trainer.world_size, self.trainer.strategy.root_device)

    def _empty_buffer(self, stage: str) -> RolloutBuffer:
        if stage == "fit":
            sizes = (self.prompts_per_rollout, self.prompts_per_step, self.num_ppo_iterations)
            return RolloutBuffer(*sizes, ranks=self._ranks, seed=self.seed)
        return RolloutBuffer(len(self.problems[stage]), self._ranks.world_size, ranks=self._ranks)


def stages(stage: str) -> tuple[str, ...]:
    """The stages whose problems a stage of the Trainer needs."""
    return ("fit", "validate") if stage == "fit" else (stage,)


def _loader(buffer: RolloutBuffer) -> DataLoader[Samples]:
    # In this process and item by item: `training.reference` knows completions by identity, so none may be copied.
    return DataLoader(buffer, batch_size=None, num_workers=0)
