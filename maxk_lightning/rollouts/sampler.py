"""Orders -> rollouts: at once, or in a thread during training; and what a checkpoint keeps of them.

How a rollout is made: push the weights and prove them (`weight_sync`), sample and score (`collect`), the same for
further prompts from the same weights (`refill`); all of it once more with a fresh engine when that of any rank fails.
An engine that takes weights while it samples may be given newer ones meanwhile.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts.collect import Watcher, collect
from maxk_lightning.rollouts.engine import EngineError, RolloutEngine
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.refill import Draw, Further, Orders
from maxk_lightning.rollouts.rollout import Order, Rollout
from maxk_lightning.rollouts.stored import Record, from_state, to_state
from maxk_lightning.rollouts.weight_sync import NUM_TEST_TOKENS_AMID_TRAINING, Push, Weights, WeightSync

logger = logging.getLogger(__name__)


class Sampler:
    """Engine and reward at work. Holds the rollout that is trained on, and those that are sampled ahead of it.

    Rollouts are begun in the order of their numbers, one after another: an engine does one thing at a time, with the
    weights that it has, which only `push` changes meanwhile.

    All ranks must call every method but `close` together.
    """

    def __init__(self, engine: RolloutEngine, reward: Reward, max_logprob_gap: float) -> None:
        self.engine = engine
        self.reward = reward
        self.current: Rollout | None = None
        "The rollout of this rank that is being trained on."
        self.watcher: Watcher | None = None
        "Follows the progress of sampling; None: nobody does."
        self._sync = WeightSync(engine, max_logprob_gap)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._ahead: deque[Draw] = deque()  # only the last one may be incomplete
        self._part: Future[Rollout] | None = None  # of the last rollout ahead: what the thread was given last,
        self._order: Order | None = None  # which is this,
        self._pushes: list[Push] = []  # and the weights that rollout has been sampled with
        self._stored_ahead: deque[Record] = deque()  # of the checkpoint that this run was resumed from, until taken;
        self._stored_current: Record | None = None  # the stored rollouts ahead come before those begun since

    def reset(self) -> None:
        """Forget an earlier run: the engine must be given weights again."""
        self._sync.version = None
        self._ahead.clear()
        self._part = None

    def sample(
        self,
        order: Order,
        weights: Weights,
        ranks: Ranks,
        further: Further | None = None,
        reward: Reward | None = None,
    ) -> Rollout:
        """Sample with the current weights; once more with fresh engines when the engine of any rank fails.

        Args:
            order: What to sample.
            weights: Weights of the policy.
            ranks: All ranks.
            further: What else to sample, by the rewards of the order; None: nothing.
            reward: Reward instead of the sampler's own.

        Raises:
            EngineError: the fresh ones failed, too.
            RankError: the reward or the engine of one of several ranks raised anything else.
        """
        for is_last_attempt in (False, True):
            if self._sync.refresh(weights, order.prompts, order.sampling, ranks):
                draw = Draw(order, further)
                while draw.due is not None:
                    push = self._sync.last
                    collector = self._collector(draw.due, push.version, reward=reward)
                    part = ranks.together(partial(_unless_the_engine_fails, collector))
                    draw.add(part and _proved(part, [push]), ranks)
                if draw.rollout is not None:
                    return draw.rollout
            self._sync.close()
            if not is_last_attempt:
                logger.warning("starting the rollout engine afresh")
        raise EngineError("the rollout engine failed twice")

    @property
    def last_begun(self) -> int | None:
        """Number of the last rollout ahead; None: there is none."""
        if self._ahead:
            return self._ahead[-1].index
        return self._stored_ahead[-1]["index"] if self._stored_ahead else None

    @property
    def is_free(self) -> bool:
        """Whether nothing is under way, the same on all ranks."""
        return self._part is None

    def begin(self, order: Order, weights: Weights, ranks: Ranks, further: Further | None = None) -> bool:
        """Begin to sample with the current weights, during training; first wait for what is under way.

        Returns:
            False: the engine of a rank has failed. A rollout that was not begun is sampled when its epoch begins.
        """
        self.finish(ranks)
        if not self.is_free:  # `take` says what happened
            return False
        if not self._sync.refresh(weights, order.prompts, order.sampling, ranks, NUM_TEST_TOKENS_AMID_TRAINING):
            self._sync.close()
            return False
        self._ahead.append(Draw(order, further))
        self._pushes = [self._sync.last]
        self._submit(order, ranks)
        return True

    def push(self, weights: Weights, ranks: Ranks) -> None:
        """Give the engine newer weights while it samples; do nothing if nothing is under way.

        When the engine of any rank fails, what is under way has failed; `take` says so.
        """
        if self._part is None:
            return
        order = self._order
        assert order is not None
        if self._sync.refresh(weights, order.prompts, order.sampling, ranks, NUM_TEST_TOKENS_AMID_TRAINING):
            self._pushes.append(self._sync.last)
            return
        self._sync.close()
        self._part.exception()  # the thread has let go of the engine
        self._part = Future()
        self._part.set_exception(EngineError("weights could not be pushed to the rollout engine while it sampled"))

    def advance(self, ranks: Ranks) -> None:
        """Add what was under way once it is done on every rank, and continue with further prompts."""
        while self._part is not None and ranks.all_true(_has_ended_well(self._part)):
            self._add_part(ranks)

    def take(self, index: int, orders: Orders, ranks: Ranks) -> Rollout | None:
        """Return the rollout of this number that was begun or stored; None: there is none, or an engine failed.

        Raises:
            RankError: the reward of one of several ranks raised.
            ValueError: the stored rollout was not made of these orders.
        """
        if self._stored_ahead and self._stored_ahead[0]["index"] == index:
            return self.restore(self._stored_ahead.popleft(), orders, ranks)
        if not self._ahead or self._ahead[0].index != index:
            return None
        if len(self._ahead) == 1:
            self.finish(ranks)
        draw = self._ahead.popleft()
        if self._ahead or self.is_free:
            return draw.rollout
        part, self._part = self._part, None
        assert part is not None
        ranks.together(partial(_unless_the_engine_fails, part.result))
        self._sync.close()
        return None

    def finish(self, ranks: Ranks) -> None:
        """Wait for the rollout that is under way: before an engine is given other weights, it must be complete.

        One that failed on any rank stays under way; `take` says so.
        """
        while self._part is not None and ranks.all_true(self._part.exception() is None):
            self._add_part(ranks)

    def state(self, ranks: Ranks, current: Record | None) -> dict[str, Any]:
        """Return the rollouts that no later run can sample again, because the weights that sampled them are gone.

        Args:
            ranks: All ranks; the state holds the groups of all.
            current: What to keep beside the rollout that is being trained on; None: training on it is over.
        """
        self.finish(ranks)  # what failed is left out; `take` says so
        complete = list(self._ahead) if self.is_free else list(self._ahead)[:-1]
        begun = [
            {"index": draw.index, **to_state(draw.rollout, ranks)} for draw in complete if draw.rollout is not None
        ]
        state: dict[str, Any] = {}
        if ahead := [*self._stored_ahead, *begun]:
            state["ahead"] = ahead
        if current is not None:
            assert self.current is not None, "a rollout is trained on that nobody sampled"
            state["current"] = {**current, **to_state(self.current, ranks)}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Keep stored rollouts until they are asked for."""
        self._stored_ahead = deque(state.get("ahead", []))
        self._stored_current = state.get("current")

    def take_current(self) -> Record | None:
        """Return the stored rollout within which the run resumed, with what was kept beside it; None: within none."""
        stored, self._stored_current = self._stored_current, None
        return stored

    def restore(self, stored: Record, orders: Orders, ranks: Ranks) -> Rollout:
        """Return this rank's share of a stored rollout, however far it had been refilled.

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
        self._ahead.clear()
        self._part = None
        self._sync.close()

    def _submit(self, order: Order, ranks: Ranks) -> None:
        self._order = order
        self._part = self._thread.submit(self._collector(order, self._pushes[0].version, ranks.device))

    def _add_part(self, ranks: Ranks) -> None:
        """Add what the thread was given last, and give it what is due next."""
        assert self._part is not None
        draw = self._ahead[-1]
        draw.add(_proved(self._part.result(), self._pushes), ranks)
        self._part = None
        if draw.due is not None:
            self._submit(draw.due, ranks)

    def _collector(
        self, order: Order, version: int, device: torch.device | None = None, reward: Reward | None = None
    ) -> Callable[[], Rollout]:
        """Make a function that samples the order from the weights that the engine has.

        Args:
            order: What to sample.
            version: Optimizer step of the weights that the rollout was begun with.
            device: Device of the rank, for a thread, which starts with the first GPU. None: the rank's own thread.
            reward: Reward instead of the sampler's own.
        """

        def run() -> Rollout:
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)
            return collect(self.engine, reward or self.reward, order, version, self.watcher)

        return run


def _proved(rollout: Rollout, pushes: Sequence[Push]) -> Rollout:
    """The rollout with what is known of the weights that it was sampled with."""
    return replace(
        rollout,
        sync_s=sum(push.seconds for push in pushes),
        logprob_gap=max(push.gap.mean for push in pushes),
        sequence_gap=max(push.gap.of_sums for push in pushes),
    )


def _has_ended_well(part: Future[Rollout]) -> bool:
    return part.done() and part.exception() is None


def _unless_the_engine_fails(make: Callable[[], Rollout]) -> Rollout | None:
    try:
        return make()
    except EngineError as error:
        logger.warning("%s", error)
        return None
