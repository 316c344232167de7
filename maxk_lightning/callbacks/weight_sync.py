"""Keep the engine's weights those of the policy, and prove it after every push."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from lightning import Trainer

from maxk_lightning.module import PolicyModule
from maxk_lightning.policy import Policy
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import EngineError, ManagedEngine, RolloutEngine
from maxk_lightning.types import Completion, Prompt, Sampling

logger = logging.getLogger(__name__)
NUM_TEST_PROMPTS = 2
NUM_TEST_TOKENS = 16
"Sampled after every push, to compare log-probs."


class WeightSync:
    """Pushes weights to an engine, and compares the log-probs of both sides on a few fresh samples."""

    def __init__(self, engine: RolloutEngine, max_logprob_gap: float) -> None:
        self.engine = engine
        self.max_logprob_gap = max_logprob_gap
        self.version: int | None = None
        "Optimizer step whose weights the engine has; None: it must be given some."
        self.gap = float("nan")
        "Mean |log-prob of the engine - log-prob of the trainer| after the last push, nats per token, worst rank."
        self.seconds = 0.0
        "What the last push and its test took."

    def refresh(self, trainer: Trainer, module: PolicyModule, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
        """Give the engine the current weights unless it has them; False when the engine of any rank failed.

        Raises:
            RuntimeError: the engine's log-probs are not the trainer's.
        """
        if self.version == trainer.global_step:
            return True
        started = time.perf_counter()
        tested = list(prompts[:NUM_TEST_PROMPTS]) or [Prompt(problem_id="", token_ids=(0,), seed=0)]
        short = replace(sampling, num_completions=1, max_new_tokens=min(NUM_TEST_TOKENS, sampling.max_new_tokens))
        samples = self._push(trainer, module, tested, short)
        if not trainer.strategy.reduce_boolean_decision(samples is not None):
            return False
        assert samples is not None
        assert module.policy is not None
        mean, largest = logprob_gap(module.policy, tested, samples, sampling.temperature)
        # top_p changes the engine's log-probs, and evaluation may use it; training refuses it.
        if sampling.top_p == 1.0:
            self._judge(trainer, module, mean, largest)
        self.version = trainer.global_step
        self.seconds = time.perf_counter() - started
        return True

    def restart(self) -> None:
        """Start afresh at the next push."""
        self.version = None
        if isinstance(self.engine, ManagedEngine):
            self.engine.close()

    def sleep(self) -> None:
        """Let the engine free memory while the policy is trained."""
        if isinstance(self.engine, ManagedEngine) and self.engine.sleep():
            self.version = None

    def _push(
        self, trainer: Trainer, module: PolicyModule, prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[list[Completion]] | None:
        weights = iter(module.hf_weights())
        try:
            self.engine.load_weights(weights, trainer.global_step)
            return self.engine.generate(prompts, sampling)
        except EngineError as error:
            logger.warning("%s", error)
            for _ in weights:  # gathering a sharded weight takes all ranks, also those whose engine failed
                pass
            return None

    def _judge(self, trainer: Trainer, module: PolicyModule, mean: float, largest: float) -> None:
        gaps = torch.tensor([mean, largest], device=module.device).nan_to_num(nan=torch.inf)  # a maximum may lose NaN
        mean, largest = trainer.strategy.reduce(gaps, reduce_op="max").tolist()
        self.gap = mean
        if not mean <= self.max_logprob_gap:
            raise RuntimeError(
                f"the rollout engine's log-probs differ from the trainer's by {mean:.2g} nats per token on average "
                f"(at most {largest:.2g}) right after a weight sync; rollout.max_logprob_gap allows "
                f"{self.max_logprob_gap:g}. The engine runs other weights, another temperature or another precision"
            )


def logprob_gap(
    policy: Policy, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], temperature: float
) -> tuple[float, float]:
    """Mean and maximum of |log-prob the engine reported - log-prob of the policy|, over tokens, in nats."""
    device = next(policy.parameters()).device
    rows = pack([prompt.token_ids for prompt in prompts], [[c.token_ids for c in group] for group in completions])
    with torch.no_grad():
        own_BT = policy(rows.to(device), temperature).logprobs_BT.cpu()
    reported = [logprob for group in completions for completion in group for logprob in completion.logprobs]
    gaps_M = (own_BT[rows.mask_BT] - torch.tensor(reported)).abs()
    return float(gaps_M.mean()), float(gaps_M.max())
