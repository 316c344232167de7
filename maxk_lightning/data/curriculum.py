"""A curriculum by solve rate: problems whose groups would teach nothing are passed over, most of the time.

Everything is a function of the seed and of the rewards seen so far, so it is the same on any number of ranks.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maxk_lightning.data.prompts import PromptStream
from maxk_lightning.seeds import derive_seed

PRIOR_COUNT = 1.0
"Samples that the rewards of all problems count for beside a problem's own."


@dataclass(frozen=True, kw_only=True)  # no slots: see `types.Sampling`
class Curriculum:
    """Take a problem with the chance that the samples of its group differ in reward, by what it earned before.

    A problem that was never sampled is always taken.
    """

    floor: float = 0.1
    "Least chance of a problem to be taken when its turn comes, in (0, 1]: the policy changes, and with it what it can."
    memory: float = 0.5
    "Share of its earlier samples that a problem keeps when it is sampled again, in [0, 1]; 1: nothing is forgotten."

    def __post_init__(self) -> None:
        if not 0.0 < self.floor <= 1.0:
            raise ValueError(f"data.curriculum.floor is {self.floor}, must be in (0, 1]")
        if not 0.0 <= self.memory <= 1.0:
            raise ValueError(f"data.curriculum.memory is {self.memory}, must be in [0, 1]")


class CurriculumStream:
    """Positions of a prompt stream, some of them passed over."""

    def __init__(self, curriculum: Curriculum, stream: PromptStream) -> None:
        """Begin at the first position, with nothing known of any problem."""
        self._curriculum = curriculum
        self._stream = stream
        self._next: int | None = None  # position; None: nothing was drawn
        self._drawn: dict[int, list[int]] = {}  # number of a rollout -> positions
        self._rewards: dict[int, Counter[float]] = {}  # index of a problem -> reward -> samples that still count
        self.num_passed_over: dict[int, int] = {}
        "Number of a rollout -> positions that were passed over on the way to it."

    def positions(self, index: int, number: int, num_completions: int) -> list[int]:
        """Where the prompts of a rollout stand in the stream; the same whenever a rollout is asked for.

        Args:
            index: Number of the rollout. Rollouts are asked for in their order.
            number: Prompts; of different problems unless there are fewer.
            num_completions: Samples of each.
        """
        if index not in self._drawn:
            self._drawn[index] = self._draw(index, number, num_completions)
        return self._drawn[index]

    def note(self, index: int, rewards: Mapping[int, Sequence[float]]) -> None:
        """Learn from the rewards of a rollout, by index of the problem; NaN: lost. Forgets rollouts before it."""
        for kept in (self._drawn, self.num_passed_over):
            for earlier in [number for number in kept if number < index]:
                del kept[earlier]
        for problem, values in rewards.items():
            seen = Counter(value for value in values if not math.isnan(value))
            for reward, count in self._rewards.get(problem, Counter()).items():
                seen[reward] += count * self._curriculum.memory  # type: ignore[assignment]
            self._rewards[problem] = seen

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain lists and dictionaries."""
        return {
            "next": self._next,
            "drawn": {index: list(positions) for index, positions in self._drawn.items()},
            "passed_over": dict(self.num_passed_over),
            "rewards": {problem: dict(counts) for problem, counts in self._rewards.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was saved."""
        self._next = state["next"]
        self._drawn = {index: list(positions) for index, positions in state["drawn"].items()}
        self.num_passed_over = dict(state["passed_over"])
        self._rewards = {problem: Counter(counts) for problem, counts in state["rewards"].items()}

    def _draw(self, index: int, number: int, num_completions: int) -> list[int]:
        everything: Counter[float] = Counter()
        for counts in self._rewards.values():
            everything.update(counts)
        first = index * number if self._next is None else self._next
        taken: set[int] = set()
        positions: list[int] = []
        for position in itertools.count(first):
            problem = self._stream.index(position)
            seen = self._rewards.get(problem)
            chance = chance_of_difference(seen, everything, num_completions) if seen else 1.0
            is_repeated = problem in taken and len(taken) < self._stream.num_problems
            if not is_repeated and _uniform(self._stream.seed, position) < max(self._curriculum.floor, chance):
                positions.append(position)
                taken.add(problem)
            if len(positions) == number:
                break
        self._next = positions[-1] + 1
        self.num_passed_over[index] = self._next - first - number
        return positions


def chance_of_difference(
    counts: Mapping[float, float], everything: Mapping[float, float], num_completions: int
) -> float:
    """Chance that `num_completions` samples do not all earn the same reward, by those a problem has earned.

    Its chances of the reward levels have a Dirichlet distribution: its own counts, and `PRIOR_COUNT` samples spread as
    those of all problems. So the counts of a group have a Dirichlet-multinomial distribution, by which n samples of
    one level with the parameter a, of A in total, have the probability Gamma(a + n) Gamma(A) / (Gamma(a) Gamma(A + n)).

    Args:
        counts: Reward -> samples of the problem.
        everything: Reward -> samples of all problems, the problem's included.
        num_completions: Samples n of the group to come.

    >>> round(chance_of_difference({0.0: 4}, {0.0: 6, 1.0: 2}, 2), 3)  # a = 4.75 and .25 of A = 5
    0.079
    """
    total, n = sum(everything.values()), num_completions
    parameters = [counts.get(reward, 0.0) + PRIOR_COUNT * count / total for reward, count in everything.items()]
    whole = math.fsum(parameters)
    same = (math.exp(_log_rising(a, n) - _log_rising(whole, n)) for a in parameters if a > 0.0)
    return min(1.0, max(0.0, 1.0 - math.fsum(same)))


def _log_rising(start: float, n: int) -> float:
    """Logarithm of start (start + 1) ... (start + n - 1)."""
    return math.lgamma(start + n) - math.lgamma(start)


def _uniform(seed: int, position: int) -> float:
    return derive_seed(seed, "curriculum", position) / 2**63
