"""The LightningDataModule: streams prompts to the rollouts, and replays rollouts to the training loop."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from maxk_lightning.data import Builtin, LoadReport, ProblemSource, PromptStream, PromptTemplate
from maxk_lightning.data.report import report_of
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.rollouts.shares import exchange
from maxk_lightning.rollouts.stored import from_state, to_state
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, Prompt

logger = logging.getLogger(__name__)
EvalStage = Literal["validate", "test", "predict"]


class RolloutBuffer(Dataset[Rollout]):
    """The current rollout in slices of whole groups, or this rank's share of each, once for every PPO iteration.

    Each iteration visits the slices in an order of its own. A slice always holds the same groups, neighbours in the
    prompt stream, and the order is the same on all ranks: an optimizer step sees the same groups however many ranks
    share it. All ranks have equally many slices; a rank's share of a slice may be empty.
    The length is known before the buffer is filled, so that a DataLoader can be built on it once.
    """

    def __init__(
        self, num_groups: int, groups_per_slice: int, num_iterations: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        """Prepare for `num_groups` over all ranks, of which this one holds every `world_size`-th from `rank` on."""
        super().__init__()
        # Of the groups before place p in the prompt stream, a rank holds (p - rank) / world_size, rounded up.
        starts = [*range(0, num_groups, groups_per_slice), num_groups]
        bounds = [-((rank - start) // world_size) for start in starts]
        self._slices = [slice(start, end) for start, end in pairwise(bounds)]
        self.num_iterations = num_iterations
        self._current: Rollout | None = None
        self._shares: Sequence[Sequence[Group]] = []
        self._order: list[int] = []

    def fill(
        self,
        rollout: Rollout,
        seed: int | None = None,
        num_done: int = 0,
        shares: Sequence[Sequence[Group]] | None = None,
    ) -> None:
        """Replace the rollout that this rank sampled; with a seed the slices of each iteration are shuffled.

        Args:
            rollout: Every `world_size`-th group from `rank` on.
            seed: Of the order of the slices; None: as they come.
            num_done: Slices that a resumed run leaves out: Lightning goes on counting, but reads from index 0.
            shares: This rank's groups of each slice, which others may have sampled; None: those that it sampled.
        """
        self._current = rollout
        self._shares = [rollout.groups[own] for own in self._slices] if shares is None else shares
        self._order = []
        for iteration in range(self.num_iterations):
            order = list(range(len(self._slices)))
            if seed is not None:
                Random(derive_seed(seed, "iteration", iteration)).shuffle(order)
            self._order += order
        self._order = self._order[num_done:]

    @property
    def rollout(self) -> Rollout:
        """What this rank sampled of the current rollout."""
        assert self._current is not None, "the rollout callback has not filled this buffer"
        return self._current

    def __len__(self) -> int:
        """Slices in all PPO iterations."""
        return len(self._slices) * self.num_iterations

    def __getitem__(self, index: int) -> Rollout:
        """The slice that stands at this place of the order."""
        return replace(self.rollout, groups=list(self._shares[self._order[index]]))


class PromptDataModule(LightningDataModule):
    """Problems and prompts for every stage.

    One Lightning epoch is one rollout, so `trainer.max_epochs` counts rollouts. Everything random is a function of
    (seed, rollout index), so a resumed run sees what an undisturbed one would have seen; only a checkpoint amid the PPO
    iterations of a rollout has to hold the rollout, because the weights that sampled it are gone.
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
        self._resumed: dict[str, Any] = {}

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
        """Put the rollout that this rank sampled where the stage's dataloader reads it, all ranks together."""
        if stage == "fit":
            self._fill_fit(rollout, rollout_index, num_done=0)
        else:
            self.buffers[stage].fill(rollout)

    def state_dict(self) -> dict[str, Any]:
        """The current rollout, gathered from all ranks, in an epoch that is under way; nothing at its end."""
        assert self.trainer is not None
        loop: Any = self.trainer.fit_loop
        if loop.epoch_progress.current.started == loop.epoch_progress.current.processed:
            return {}
        rollout = self.buffers["fit"].rollout
        return {
            "rollout_index": self.trainer.current_epoch,
            "num_done": loop.epoch_loop.batch_progress.current.processed,
            "schedule": self._schedule,
            **to_state(rollout),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a stored rollout, which training goes on with."""
        self._resumed = state_dict

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

    @property
    def _schedule(self) -> dict[str, int]:
        names = ("prompts_per_rollout", "prompts_per_step", "num_ppo_iterations", "seed")
        return {name: getattr(self, name) for name in names}

    def _loader(self, stage: str) -> DataLoader[Rollout]:
        rank, ranks = self._rank, self._world_size
        if stage == "fit":
            sizes = (self.prompts_per_rollout, self.prompts_per_step, self.num_ppo_iterations)
        else:
            sizes = (len(self.problems[stage]), ranks, 1)
        self.buffers[stage] = RolloutBuffer(*sizes, rank=rank, world_size=ranks)
        if stage == "fit" and self._resumed:
            self._refill(self._resumed)
            self._resumed = {}
        return DataLoader(self.buffers[stage], batch_size=None, num_workers=0)

    def _refill(self, state: dict[str, Any]) -> None:
        """Put this rank's share of a stored rollout back, however many ranks there are.

        Raises:
            ValueError: the optimizer steps left in it would not be those that this configuration makes.
        """
        if state["schedule"] != self._schedule:
            raise ValueError(
                f"data: the checkpoint was saved amid a rollout with {state['schedule']}, which cannot go on with "
                f"{self._schedule}; change these at the end of a rollout"
            )
        index = state["rollout_index"]
        problems, prompts = self.rollout_prompts(index)
        rollout = from_state(state, problems, prompts, self._rank, self._world_size)
        self._fill_fit(rollout, index, state["num_done"])

    def _fill_fit(self, rollout: Rollout, index: int, num_done: int) -> None:
        """Fill the training buffer; of several ranks each gets about as many tokens of every optimizer step."""
        shares = exchange(rollout.groups, self.prompts_per_step) if self._world_size > 1 else None
        self.buffers["fit"].fill(rollout, derive_seed(self.seed, "buffer", index), num_done, shares)

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
