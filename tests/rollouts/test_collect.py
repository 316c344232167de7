"""collect(): scoring begins while sampling goes on, and changes nothing."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.collect import collect
from maxk_lightning.rollouts.rollout import Order
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score, TestCase
from tests.support.fakes import LengthReward

PROBLEMS = [Problem(id=str(i), prompt="p", tests=(TestCase(input="", output=""),)) for i in range(3)]
PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 12 + 4 * i)), seed=100 + i) for i in range(3)]
SAMPLING = Sampling(num_completions=6, max_new_tokens=40, temperature=0.8)
ORDER = Order(index=0, problems=PROBLEMS, prompts=PROMPTS, sampling=SAMPLING)


class StreamedLengthReward(LengthReward):
    """Scores at once, and notes when."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def submit(self, problem: Problem, completion: str) -> "Future[Score]":
        self.events.append("scored")
        future: Future[Score] = Future()
        future.set_result(Score(reward=self.reward(completion), verdicts=()))
        return future


class NotingEngine(TransformersEngine):
    """The real engine, noting every completion it hands out."""

    def __init__(self, policy: str, events: list[str]) -> None:
        super().__init__(policy)
        self.events = events

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int, Completion]]:
        for item in super().stream(prompts, sampling):
            self.events.append("sampled")
            yield item


def test_a_completion_is_scored_before_the_next_one_ends(random_policy: str) -> None:
    events: list[str] = []
    streamed = collect(NotingEngine(random_policy, events), StreamedLengthReward(events), ORDER)
    assert events == ["sampled", "scored"] * 18
    plain = collect(TransformersEngine(random_policy), LengthReward(), ORDER)
    assert streamed.samples == plain.samples


def test_completions_come_in_the_order_they_end(random_policy: str) -> None:
    engine = TransformersEngine(random_policy)
    lengths = [len(completion.token_ids) for _, _, completion in engine.stream(PROMPTS, SAMPLING)]
    assert lengths == sorted(lengths)
    assert len(lengths) == 18
    assert lengths[0] < lengths[-1]
