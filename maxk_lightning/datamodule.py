"""The LightningDataModule: streams prompts to the rollouts, and replays rollouts to the training loop."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from maxk_lightning.data import Builtin, LoadReport, ProblemSource, PromptStream, PromptTemplate
from maxk_lightning.data.report import report_of
from maxk_lightning.experience import Rollout
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, Prompt

logger = logging.getLogger(__name__)
EvalStage = Literal["validate", "test", "predict"]


class RolloutBuffer(Dataset[Rollout]):
    """The current rollout in slices of whole groups, once for every PPO iteration.

    Each iteration visits the slices in an order of its own. A slice always holds the same groups, neighbours in the
    prompt stream, and the order is the same on all ranks: an optimizer step sees the same groups however many ranks
    share it.
    The length is known before the buffer is filled, so that a DataLoader can be built on it once.
    """

    def __init__(self, num_groups: int, groups_per_slice: int, num_iterations: int = 1) -> None:
        super().__init__()
        self.num_slices = -(-num_groups // groups_per_slice)
        self.groups_per_slice = groups_per_slice
        self.num_iterations = num_iterations
        self._current: Rollout | None = None
        self._order: list[int] = []

    def fill(self, rollout: Rollout, seed: int | None = None) -> None:
        """Replace the rollout; with a seed the slices of each iteration are shuffled."""
        self._current = rollout
        self._order = []
        for iteration in range(self.num_iterations):
            order = list(range(self.num_slices))
            if seed is not None:
                Random(derive_seed(seed, "iteration", iteration)).shuffle(order)
            self._order += order

    @property
    def rollout(self) -> Rollout:
        """The whole current rollout."""
        assert self._current is not None, "the rollout callback has not filled this buffer"
        return self._current

    def __len__(self) -> int:
        """Slices in all PPO iterations."""
        return self.num_slices * self.num_iterations

    def __getitem__(self, index: int) -> Rollout:
        """The slice that stands at this place of the order."""
        start = self._order[index] * self.groups_per_slice
        return replace(self.rollout, groups=self.rollout.groups[start : start + self.groups_per_slice])


class PromptDataModule(LightningDataModule):
    """Problems and prompts for every stage.

    One Lightning epoch is one rollout, so `trainer.max_epochs` counts rollouts. Everything random is a function of
    (seed, rollout index): there is no state to save, and a resumed run sees what an undisturbed one would have seen.
    """

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
                rollout.
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

    def setup(self, stage: str) -> None:
        """Read the problems that a stage needs; running it again is free.

        Raises:
            ValueError: naming file, line and reason, or a source without a usable problem.
        """
        self.tokenizer = self.tokenizer or load_tokenizer(self.policy_name)
        for name in ("fit", "validate") if stage == "fit" else (stage,):
            if name not in self.problems:
                self.problems[name] = self._load(name)

    def rollout_prompts(self, rollout_index: int) -> tuple[list[Problem], list[Prompt]]:
        """This rank's problems and prompts of a rollout."""
        stream = PromptStream(num_problems=len(self.problems["fit"]), seed=self.seed)
        start = rollout_index * self.prompts_per_rollout
        positions = range(start + self._rank, start + self.prompts_per_rollout, self._world_size)
        problems = [self.problems["fit"][stream.index(position)] for position in positions]
        seeds = [derive_seed(self.seed, "fit", position) for position in positions]
        return problems, self._render(problems, seeds)

    def eval_prompts(self, stage: EvalStage) -> tuple[list[Problem], list[Prompt]]:
        """This rank's problems and prompts of an evaluation; seeds do not change, so evaluations are paired."""
        problems = list(self.problems[stage])[self._rank :: self._world_size]
        return problems, self._render(problems, [derive_seed(self.seed, stage, problem.id) for problem in problems])

    def fill(self, stage: str, rollout: Rollout, rollout_index: int = 0) -> None:
        """Put a rollout where the stage's dataloader reads it."""
        seed = derive_seed(self.seed, "buffer", rollout_index) if stage == "fit" else None
        self.buffers[stage].fill(rollout, seed)

    def train_dataloader(self) -> DataLoader[Rollout]:
        """Slices of the current rollout, for every PPO iteration."""
        return self._loader("fit")

    def val_dataloader(self) -> DataLoader[Rollout] | list[Any]:
        """Slices of the validation rollout."""
        return self._loader("validate") if self.problems["validate"] else []

    def test_dataloader(self) -> DataLoader[Rollout]:
        """Slices of the test rollout."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Rollout]:
        """Slices of the rollout to predict."""
        return self._loader("predict")

    def transfer_batch_to_device(self, batch: Rollout, device: torch.device, dataloader_idx: int) -> Rollout:
        """Leave rollouts on the host: `training_step` moves one micro-batch at a time."""
        return batch

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, stage: str) -> DataLoader[Rollout]:
        self.buffers[stage] = self._train_buffer() if stage == "fit" else self._eval_buffer(stage)
        return DataLoader(self.buffers[stage], batch_size=None, num_workers=0)

    def _train_buffer(self) -> RolloutBuffer:
        ranks = self._world_size
        if self.prompts_per_step % ranks:
            raise ValueError(f"data.prompts_per_step ({self.prompts_per_step}) must be a multiple of the {ranks} ranks")
        groups, groups_per_step = self.prompts_per_rollout // ranks, self.prompts_per_step // ranks
        return RolloutBuffer(groups, groups_per_step, self.num_ppo_iterations)

    def _eval_buffer(self, stage: str) -> RolloutBuffer:
        num_problems = len(self.problems[stage])
        if num_problems < self._world_size:
            raise ValueError(f"data ({stage}): {num_problems} problems are fewer than the {self._world_size} ranks")
        return RolloutBuffer(len(range(self._rank, num_problems, self._world_size)), groups_per_slice=1)

    def _load(self, stage: str) -> Sequence[Problem]:
        source = self.sources[stage]
        if source is None:
            return []
        problems = source.load()
        lengths = [len(self.template.render(problem, self.tokenizer, seed=0).token_ids) for problem in problems]
        kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= self.max_prompt_tokens]
        report = self.reports[stage] = report_of(source, problems, type(source).__name__)
        too_long = {problem.id for problem in problems} - {problem.id for problem in kept}
        report.drop(too_long, f"prompt longer than data.max_prompt_tokens ({self.max_prompt_tokens})")
        rank_zero_info("data (%s): %s", stage, report.text())
        logger.info("%s: %s problems, prompts of at most %s tokens", stage, len(kept), max(lengths, default=0))
        if len(kept) < len(problems):
            logger.warning(
                "%s: left out %s of %s problems: prompt longer than max_prompt_tokens (%s)",
                stage, len(problems) - len(kept), len(problems), self.max_prompt_tokens,
            )  # fmt: skip
        if not kept:
            raise ValueError(f"data ({stage}): no problem has a prompt of at most {self.max_prompt_tokens} tokens")
        return kept

    def _render(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Prompt]:
        return [
            self.template.render(problem, self.tokenizer, seed) for problem, seed in zip(problems, seeds, strict=True)
        ]
