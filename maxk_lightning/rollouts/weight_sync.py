"""Keep the engine's weights equal to the policy's, and prove it after every push."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from maxk_lightning.policy import Policy
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts.engine import ComposedEngine, EngineError, ManagedEngine, Part, RolloutEngine
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.types import Completion, Prompt, Sampling

logger = logging.getLogger(__name__)
NUM_TEST_PROMPTS = 8
NUM_TEST_TOKENS = 64
"Tokens sampled per prompt after every push, to compare log-probs."
NUM_TEST_TOKENS_AMID_TRAINING = 8
"Likewise where a rollout is begun or given newer weights between optimizer steps: training waits for them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The policy at one optimizer step, for an engine to take over."""

    policy: Policy
    "The policy itself, which the engine must agree with."
    named_tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    "Iterates over its weights under Hugging Face names; all ranks must iterate together, to gather sharded ones."
    step: int
    "Optimizer steps made so far."
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext
    "What an optimizer step computes log-probs in: autocast, where training is in mixed precision."


class Gap(NamedTuple):
    """How far the log-probs of an engine are from the policy's, in nats."""

    mean: float
    "Mean over tokens of |engine - policy|."
    largest: float
    "Largest of these."
    of_sums: float
    "Mean over completions of |sum over its tokens of engine - policy|: the error of a sequence's log-ratio."


NO_GAP = Gap(float("nan"), float("nan"), float("nan"))
"The gap before anything was compared."


class Push(NamedTuple):
    """A push of weights, and its proof."""

    version: int
    "Optimizer step of the weights."
    seconds: float
    "Wall-clock seconds that both took."
    gap: Gap
    "Gap of the proof; each number is that of the worst rank."


class WeightSync:
    """Pushes weights to an engine, and compares the log-probs of both sides on a few fresh samples."""

    def __init__(self, engine: RolloutEngine, max_logprob_gap: float) -> None:
        self.engine = engine
        self.max_logprob_gap = max_logprob_gap
        self.version: int | None = None
        "Optimizer step of the engine's weights; None: it must be given some."
        self.gap = NO_GAP
        "Gap of the last push; each number is that of the worst rank."
        self.seconds = 0.0
        "Seconds that the last push and its proof took."

    @property
    def last(self) -> Push:
        """The push that gave the engine its weights."""
        assert self.version is not None, "the engine was given no weights"
        return Push(self.version, self.seconds, self.gap)

    def refresh(
        self,
        weights: Weights,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        ranks: Ranks,
        num_tokens: int = NUM_TEST_TOKENS,
    ) -> bool:
        """Give the engine the current weights unless it has them; False when the engine of any rank failed.

        The proof samples with top_p 1, whatever `sampling` has: log-probs of a truncated distribution are not those of
        the policy, and the next rollout, which may not be truncated, relies on the proof too. Each part of an engine is
        tested, and the worst counts.

        Raises:
            RuntimeError: the engine's log-probs are not the trainer's.
            RankError: the engine of one of several ranks refused weights or prompts.
        """
        if self.version == weights.step:
            return True
        started = time.perf_counter()
        tested = list(prompts[:NUM_TEST_PROMPTS]) or [Prompt(problem_id="", token_ids=(0,), seed=0)]
        num_tokens = min(num_tokens, sampling.max_new_tokens)
        short = replace(sampling, num_completions=1, max_new_tokens=num_tokens, top_p=1.0)
        parts = ranks.together(lambda: self._push(weights, tested, short))
        if not ranks.all_true(parts is not None):
            return False
        assert parts is not None
        with weights.forward_context():
            gaps = logprob_gaps(weights.policy, parts, sampling.temperature)
        self._judge(gaps, parts, ranks)
        self.version = weights.step
        self.seconds = time.perf_counter() - started
        return True

    def close(self) -> None:
        """Close the engine; the next push starts a new one."""
        self.version = None
        if isinstance(self.engine, ManagedEngine):
            self.engine.close()

    def sleep(self) -> None:
        """Let the engine free memory while the policy is trained."""
        if isinstance(self.engine, ManagedEngine) and self.engine.sleep():
            self.version = None

    def _push(self, weights: Weights, prompts: Sequence[Prompt], sampling: Sampling) -> list[Part] | None:
        named_tensors = weights.named_tensors()
        try:
            self.engine.load_weights(named_tensors, weights.step)
            if isinstance(self.engine, ComposedEngine):
                return self.engine.sample_each(prompts, sampling)
            groups = self.engine.generate(prompts, sampling)
            return [Part(name=type(self.engine).__name__, prompts=prompts, groups=groups)]
        except EngineError as error:
            logger.warning("%s", error)
            return None
        finally:
            for _ in named_tensors:  # gathering a sharded weight takes all ranks, also those whose engine failed
                pass

    def _judge(self, gaps: Sequence[Gap], parts: Sequence[Part], ranks: Ranks) -> None:
        for part, gap in zip(parts, gaps, strict=True):
            if len(parts) > 1 and not gap.mean <= self.max_logprob_gap:
                logger.warning("%s: log-probs differ by %.2g nats per token on average", part.name, gap.mean)
        numbers = torch.tensor(gaps, dtype=torch.float64).nan_to_num(nan=torch.inf)  # a maximum may lose NaN
        self.gap = Gap(*ranks.largest(numbers.amax(0).tolist()))
        if not self.gap.mean <= self.max_logprob_gap:
            raise RuntimeError(
                f"the rollout engine's log-probs differ from the trainer's by {self.gap.mean:.2g} nats per token on "
                f"average (at most {self.gap.largest:.2g}) right after a weight sync; rollout.max_logprob_gap allows "
                f"{self.max_logprob_gap:g}. The engine runs other weights, another temperature or another precision"
            )


def logprob_gap(
    policy: Policy, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], temperature: float
) -> Gap:
    """Compare the log-probs that an engine reported with the policy's."""
    return logprob_gaps(policy, [Part(name="", prompts=prompts, groups=completions)], temperature)[0]


def logprob_gaps(policy: Policy, parts: Sequence[Part], temperature: float) -> list[Gap]:
    """Do so for each part of an engine, with one call of the policy: ranks, which may differ in parts, share it."""
    device = next(policy.parameters()).device
    prompts = [prompt.token_ids for part in parts for prompt in part.prompts]
    rows = pack(prompts, [[c.token_ids for c in group] for part in parts for group in part.groups])
    with torch.no_grad():
        own_BT = policy(rows.to(device), temperature).logprobs_BT.cpu()
    told = [[c.logprobs for group in part.groups for c in group] for part in parts]
    sizes = [len(logprobs) for of_part in told for logprobs in of_part]
    told_M = torch.tensor([logprob for of_part in told for logprobs in of_part for logprob in logprobs])
    gaps = iter((told_M - own_BT[rows.mask_BT]).split(sizes))
    return [_gap_of(list(itertools.islice(gaps, len(of_part)))) for of_part in told]


def _gap_of(gaps: Sequence[Tensor]) -> Gap:
    """Sum up signed gaps per token, a tensor per completion."""
    gaps_M = torch.cat(list(gaps))
    of_sums_B = torch.stack([gap_T.double().sum().abs() for gap_T in gaps])
    return Gap(float(gaps_M.abs().mean()), float(gaps_M.abs().max()), float(of_sums_B.mean()))
