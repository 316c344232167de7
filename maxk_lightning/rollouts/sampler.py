"""Orders -> rollouts: at once, or in a thread while training goes on; and what a checkpoint keeps of them.

How a rollout is made: push the weights and prove them (`weight_sync`), sample and score (`collect`), once more with a
fresh engine when the engine of any rank fails.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts.collect import Watcher, collect
from maxk_lightning.rollouts.engine import EngineError, RolloutEngine
from maxk_lightning.rollouts.ranks import Ranks
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
        self._ahead: tuple[int, Future[Rollout]] | None = None
        self._stored: dict[str, Record] = {}  # of the checkpoint that this run was resumed from, until it is taken

    def reset(self) -> None:
        """Forget an earlier run: the engine must be given weights."""
        self._sync.version = None
        self._ahead = None

    def sample(self, order: Order, weights: Weights, ranks: Ranks, reward: Reward | None = None) -> Rollout:
        """Sample with the current weights; once more with fresh engines when the engine of any rank fails.

        Args:
            order: What to sample.
            weights: Of the policy.
            ranks: All of them.
            reward: In place of the sampler's own.

        Raises:
            EngineError: the fresh ones failed, too.
        """
        for is_last_attempt in (False, True):
            rollout = None
            if self._sync.refresh(weights, order.prompts, order.sampling, ranks):
                rollout = _unless_the_engine_fails(self._collector(order, reward=reward))
            if ranks.all_true(rollout is not None):
                break
            self._sync.close()
            if is_last_attempt:
                raise EngineError("the rollout engine failed twice")
            logger.warning("starting the rollout engine afresh")
        assert rollout is not None
        return rollout

    def begin(self, order: Order, weights: Weights, ranks: Ranks) -> None:
        """Begin to sample with the weights as they are, while training goes on."""
        if self._sync.refresh(weights, order.prompts, order.sampling, ranks):
            self._ahead = order.index, self._thread.submit(self._collector(order, ranks.device))
        else:
            self._sync.close()  # sampled when its epoch begins

    def take(self, order: Order, ranks: Ranks) -> Rollout | None:
        """The rollout that was begun for this order, or stored; None: there is none, or the engine of a rank failed."""
        stored = self._stored.pop("ahead", None)
        if stored is not None and stored["index"] == order.index:
            return from_state(stored, order, ranks)
        if self._ahead is None or self._ahead[0] != order.index:
            return None
        rollout = self._finish(ranks)
        self._ahead = None
        if rollout is None:
            self._sync.close()
        return rollout

    def wait(self) -> None:
        """Wait until nothing is being sampled: an engine does one thing at a time."""
        if self._ahead is not None:
            self._ahead[1].exception()

    def state(self, ranks: Ranks, current: Record | None) -> dict[str, Record]:
        """The rollouts that no later run can sample again, because the weights that sampled them are gone.

        Args:
            ranks: All of them; the state holds the groups of all.
            current: What to keep beside the rollout that is being trained on; None: training on it is over.
        """
        state = {}
        ahead = self._finish(ranks)
        if self._ahead is not None and ahead is not None:
            state["ahead"] = {"index": self._ahead[0], **to_state(ahead, ranks)}
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

    def restore(self, stored: Record, order: Order, ranks: Ranks) -> Rollout:
        """This rank's share of a stored rollout.

        Raises:
            ValueError: it was not made of this order.
        """
        return from_state(stored, order, ranks)

    def sleep(self) -> None:
        """Let the engine free memory while the policy is trained."""
        self._sync.sleep()

    def close(self) -> None:
        """Close the engine, once the thread that samples ahead has let go of it."""
        self.wait()
        self._ahead = None
        self._sync.close()

    def _finish(self, ranks: Ranks) -> Rollout | None:
        """Wait for the rollout that is under way; None when there is none, or the engine of any rank failed."""
        if self._ahead is None:
            return None
        rollout = _unless_the_engine_fails(self._ahead[1].result)
        return rollout if ranks.all_true(rollout is not None) else None

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
            return replace(rollout, sync_s=sync_s, logprob_gap=gap)

        return run


def _unless_the_engine_fails(make: Callable[[], Rollout]) -> Rollout | None:
    try:
        return make()
    except EngineError as error:
        logger.warning("%s", error)
        return None
