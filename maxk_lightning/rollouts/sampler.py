"""Orders -> rollouts: at once, or in a thread while training goes on; and what a checkpoint keeps of them.

How a rollout is made: push the weights and prove them (`weight_sync`), sample and score (`collect`), the same for
further prompts from the same weights (`refill`); all of it once more with a fresh engine when that of any rank fails.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts.collect import Watcher, collect
from maxk_lightning.rollouts.engine import EngineError, RolloutEngine
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.refill import Draw, Orders, Refill
from maxk_lightning.rollouts.rollout import Order, Rollout
from maxk_lightning.rollouts.stored import Record, from_state, to_state
from maxk_lightning.rollouts.weight_sync import Weights, WeightSync

logger = logging.getLogger(__name__)


class Sampler:
    """Engine and reward at work. Holds the rollout that is trained on, and the one that is sampled ahead.

    All ranks call every method together, `close` apart.
    """

    def __init__(self, engine: RolloutEngine, reward: Reward, max_logprob_gap: float) -> None:
        self.engine = engine
        self.reward = reward
        self.current: Rollout | None = None
        "The rollout of this rank that is being trained on."
        self.watcher: Watcher | None = None
        "Told how far sampling is."
        self._sync = WeightSync(engine, max_logprob_gap)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._ahead: Draw | None = None
        self._part: Future[Rollout] | None = None  # of the rollout ahead: what the thread was given last
        self._stored: dict[str, Record] = {}  # of the checkpoint that this run was resumed from, until it is taken

    def reset(self) -> None:
        """Forget an earlier run: the engine must be given weights."""
        self._sync.version = None
        self._ahead = self._part = None

    def sample(
        self,
        order: Order,
        weights: Weights,
        ranks: Ranks,
        refill: Refill | None = None,
        reward: Reward | None = None,
    ) -> Rollout:
        """Sample with the current weights; once more with fresh engines when the engine of any rank fails.

        Args:
            order: What to sample.
            weights: Of the policy.
            ranks: All of them.
            refill: What to sample further while too few groups have credit; None: nothing.
            reward: In place of the sampler's own.

        Raises:
            EngineError: the fresh ones failed, too.
            RankError: the reward or the engine of one of several ranks raised anything else.
        """
        for is_last_attempt in (False, True):
            if self._sync.refresh(weights, order.prompts, order.sampling, ranks):
                draw = Draw(order, refill)
                while draw.due is not None:
                    make = partial(_unless_the_engine_fails, self._collector(draw.due, reward=reward))
                    draw.add(ranks.together(make), ranks)
                if draw.rollout is not None:
                    return draw.rollout
            self._sync.close()
            if not is_last_attempt:
                logger.warning("starting the rollout engine afresh")
        raise EngineError("the rollout engine failed twice")

    def begin(self, order: Order, weights: Weights, ranks: Ranks, refill: Refill | None = None) -> None:
        """Begin to sample with the weights as they are, while training goes on."""
        if self._sync.refresh(weights, order.prompts, order.sampling, ranks):
            self._ahead = Draw(order, refill)
            self._submit(order, ranks)
        else:
            self._sync.close()  # sampled when its epoch begins

    def advance(self, ranks: Ranks) -> None:
        """Let the rollout ahead go on with further prompts, where what was under way is done on every rank."""
        if self._ahead is not None and self._ahead.refill is not None:
            while self._ahead.due is not None and ranks.all_true(
                self._part is not None and _has_ended_well(self._part)
            ):
                self._add_part(self._ahead, ranks)

    def take(self, index: int, orders: Orders, ranks: Ranks) -> Rollout | None:
        """The rollout of this number that was begun, or stored; None: there is none, or the engine of a rank failed.

        Raises:
            RankError: the reward of one of several ranks raised.
        """
        stored = self._stored.pop("ahead", None)
        if stored is not None and stored["index"] == index:
            return self.restore(stored, orders, ranks)
        if self._ahead is None or self._ahead.index != index:
            return None
        rollout = self.finish(ranks)
        part, self._ahead, self._part = self._part, None, None
        if rollout is None and part is not None:
            ranks.together(partial(_unless_the_engine_fails, part.result))
            self._sync.close()
        return rollout

    def finish(self, ranks: Ranks) -> Rollout | None:
        """Wait for the rollout ahead; None when there is none, or it failed on any rank, which `take` says.

        An engine does one thing at a time, and with the weights that it has: before it is given others, the rollout
        ahead must be complete.
        """
        if self._ahead is None:
            return None
        while self._ahead.due is not None:
            if not ranks.all_true(self._part is not None and self._part.exception() is None):
                return None
            self._add_part(self._ahead, ranks)
        return self._ahead.rollout

    def state(self, ranks: Ranks, current: Record | None) -> dict[str, Record]:
        """The rollouts that no later run can sample again, because the weights that sampled them are gone.

        Args:
            ranks: All of them; the state holds the groups of all.
            current: What to keep beside the rollout that is being trained on; None: training on it is over.
        """
        state = {}
        ahead = self.finish(ranks)  # what failed is left out; `take` says so
        if self._ahead is not None and ahead is not None:
            state["ahead"] = {"index": self._ahead.index, **to_state(ahead, ranks)}
        elif "ahead" in self._stored:
            state["ahead"] = self._stored["ahead"]
        if current is not None:
            assert self.current is not None, "a rollout is trained on that nobody sampled"
            state["current"] = {**current, **to_state(self.current, ranks)}
        return state

    def load_state(self, state: dict[str, Record]) -> None:
        """Keep stored rollouts until they are asked for."""
        self._stored = dict(state)

    def take_current(self) -> Record | None:
        """The stored rollout that a resumed run was amid, with what was kept beside it; None: it was amid none."""
        return self._stored.pop("current", None)

    def restore(self, stored: Record, orders: Orders, ranks: Ranks) -> Rollout:
        """This rank's share of a stored rollout, however far it had been refilled.

        Raises:
            ValueError: it was not made of these orders.
        """
        return from_state(stored, orders(range(len(stored["groups"]))), ranks)

    def sleep(self) -> None:
        """Let the engine free memory while the policy is trained."""
        self._sync.sleep()

    def close(self) -> None:
        """Close the engine, once the thread that samples ahead has let go of it."""
        if self._part is not None:
            self._part.exception()
        self._ahead = self._part = None
        self._sync.close()

    def _submit(self, order: Order, ranks: Ranks) -> None:
        self._part = self._thread.submit(self._collector(order, ranks.device))

    def _add_part(self, ahead: Draw, ranks: Ranks) -> None:
        """Add what the thread was given last, and give it what is due next."""
        assert self._part is not None
        ahead.add(self._part.result(), ranks)
        self._part = None
        if ahead.due is not None:
            self._submit(ahead.due, ranks)

    def _collector(
        self, order: Order, device: torch.device | None = None, reward: Reward | None = None
    ) -> Callable[[], Rollout]:
        """Make a function that samples the order from the weights that the engine has now.

        Args:
            order: What to sample.
            device: Of the rank, for a thread: every thread starts with the first GPU. None: the rank's own thread.
            reward: In place of the sampler's own.
        """
        version, sync_s, gap = self._sync.version, self._sync.seconds, self._sync.gap
        assert version is not None

        def run() -> Rollout:
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)
            rollout = collect(self.engine, reward or self.reward, order, version, self.watcher)
            return replace(rollout, sync_s=sync_s, logprob_gap=gap.mean, sequence_gap=gap.of_sums)

        return run


def _has_ended_well(part: Future[Rollout]) -> bool:
    return part.done() and part.exception() is None


def _unless_the_engine_fails(make: Callable[[], Rollout]) -> Rollout | None:
    try:
        return make()
    except EngineError as error:
        logger.warning("%s", error)
        return None
