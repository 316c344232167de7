"""One engine, several servers: the load is shared, one that fails is left out, and nobody samples from old weights."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import EngineError
from maxk_lightning.rollouts.engines.vllm.fan_out import Receiver, fan_out
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.link import HOLD
from maxk_lightning.types import Completion, Prompt, Sampling
from tests.rollouts.engines.conftest import Make
from tests.support.served import Served

PROMPTS = [Prompt(problem_id=str(seed), token_ids=(5, 6, seed), seed=seed) for seed in range(7, 11)]
SAMPLING = Sampling(num_completions=8, max_new_tokens=4)
NUM_ALL = len(PROMPTS) * SAMPLING.num_completions
WEIGHTS = load_model("builtin").state_dict()
MOVED = {name: tensor + 1 for name, tensor in WEIGHTS.items()}


def _expected(make: Make, weights: dict[str, Tensor] = WEIGHTS) -> list[list[Completion]]:
    """What a single server samples that nothing happens to."""
    server = Served()
    try:
        engine = make(server)
        engine.load_weights(weights.items(), 2)
        return engine.generate(PROMPTS, SAMPLING)
    finally:
        server.kill()


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_requests_are_shared_by_load(pair: tuple[Served, Served], make: Make) -> None:
    expected = _expected(make)
    engine = make(*pair)
    for server in pair:
        server.plan(hold=True)
    arriving = engine.stream(PROMPTS, SAMPLING)
    first: list[tuple[int, int, Completion]] = []
    consumer = threading.Thread(target=lambda: first.extend(arriving))
    consumer.start()
    _wait_until(lambda: pair[0].asked("held") + pair[1].asked("held") == 8)
    assert [server.asked("held") for server in pair] == [4, 4]
    for server in pair:
        server.plan()
    consumer.join()
    assert len(first) == NUM_ALL
    assert all(completion == expected[index][sample] for index, sample, completion in first)


def test_a_server_that_a_killed_run_left_on_hold_samples_again(pair: tuple[Served, Served], make: Make) -> None:
    expected = _expected(make)
    for server in pair:
        Server(server.url, 30.0).post(HOLD, {})
    assert make(*pair).generate(PROMPTS, SAMPLING) == expected


def test_a_slow_server_is_asked_less(pair: tuple[Served, Served], make: Make) -> None:
    expected = _expected(make)
    engine = make(*pair, max_connections=1)
    slow, fast = pair
    slow.plan(hold=True)
    arrived = []
    for arrival in engine.stream(PROMPTS, SAMPLING):
        arrived.append(arrival)
        if len(arrived) == NUM_ALL - 1:
            slow.plan()
    assert [slow.asked(), fast.asked()] == [1, NUM_ALL - 1]
    assert all(completion == expected[index][sample] for index, sample, completion in arrived)


def test_a_dead_server_is_left_out_until_the_next_push(
    pair: tuple[Served, Served], make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    expected, moved = _expected(make), _expected(make, MOVED)
    assert moved != expected
    engine = make(*pair)
    dying = pair[1]
    dying.plan(die_after=3)
    with caplog.at_level(logging.WARNING):
        assert engine.generate(PROMPTS, SAMPLING) == expected
    (warning,) = caplog.messages
    assert f"the vLLM server at {dying.url} is left out" in warning

    dying.process.wait()
    dying.start()  # with other weights
    assert engine.generate(PROMPTS, SAMPLING) == expected
    assert dying.asked() == 0
    engine.load_weights(MOVED.items(), 2)
    assert engine.generate(PROMPTS, SAMPLING) == moved
    assert dying.asked() > 0
    assert engine.version == 2


def test_a_dead_server_does_not_hold_up_the_next_push(
    pair: tuple[Served, Served], make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    moved = _expected(make, MOVED)
    engine = make(*pair)
    pair[0].kill()
    engine.load_weights(MOVED.items(), 2)
    assert caplog.messages == [
        f"the vLLM server at {pair[0].url} is left out until the next push of weights: it does not answer"
    ]
    assert engine.generate(PROMPTS, SAMPLING) == moved


@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_server_that_was_started_anew_is_not_asked(
    pair: tuple[Served, Served], make: Make, num_servers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was under way when it ended, and it answers as if nothing had happened."""
    expected = _expected(make)
    engine = make(*pair[:num_servers])
    pair[0].kill()
    pair[0].start()
    if num_servers == 1:
        with pytest.raises(EngineError, match="has other weights than it was given"):
            engine.generate(PROMPTS, SAMPLING)
    else:
        assert engine.generate(PROMPTS, SAMPLING) == expected
        assert "has other weights than it was given" in caplog.text
    assert pair[0].asked() == 0


def test_a_server_that_never_answers_is_left_out(pair: tuple[Served, Served], make: Make) -> None:
    expected = _expected(make)
    engine = make(*pair, timeout_s=2.0)
    pair[1].plan(hold=True)
    assert engine.generate(PROMPTS, SAMPLING) == expected
    assert pair[0].asked() == NUM_ALL


@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_server_that_stops_and_leaves_requests_open_is_not_waited_for(
    pair: tuple[Served, Served], make: Make, num_servers: int
) -> None:
    expected = _expected(make)
    engine = make(*pair[:num_servers], timeout_s=3600.0)
    pair[0].plan(hold=True)
    stopping = threading.Thread(
        target=lambda: (_wait_until(lambda: pair[0].asked("held") == 4), pair[0].plan(hold=True, stop=True))
    )
    stopping.start()
    if num_servers == 1:
        with pytest.raises(EngineError):
            engine.generate(PROMPTS, SAMPLING)
    else:
        assert engine.generate(PROMPTS, SAMPLING) == expected
    stopping.join()


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_takes_no_weights_is_not_asked(
    pair: tuple[Served, Served], make: Make, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    moved = _expected(make, MOVED)
    engine = make(*pair)
    pair[1].plan(refuse=status)
    engine.load_weights(MOVED.items(), 2)
    assert f"the vLLM server at {pair[1].url} is left out" in caplog.text
    assert engine.generate(PROMPTS, SAMPLING) == moved
    assert pair[1].asked() == 0

    pair[0].plan(refuse=status)
    with pytest.raises(ValueError if status == 400 else EngineError, match=f"{status}"):
        engine.load_weights(WEIGHTS.items(), 3)
    assert engine.version is None
    with pytest.raises(ValueError, match="they must be loaded first"):
        engine.generate(PROMPTS, SAMPLING)


def test_an_engine_without_any_server_left_has_failed(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(*pair)
    for server in pair:
        server.plan(die_after=5)
    with pytest.raises(EngineError, match=r"does not answer v1/completions"):
        engine.generate(PROMPTS, SAMPLING)
    with pytest.raises(EngineError, match="no vLLM server is left"):
        engine.generate(PROMPTS, SAMPLING)
    with pytest.raises(EngineError, match=r"none of the vLLM servers at .* answers"):
        engine.load_weights(WEIGHTS.items(), 2)
    engine.close()
    with pytest.raises(EngineError, match=r"no vLLM server at .* has answered"):
        engine.load_weights(WEIGHTS.items(), 2)
    pair[1].start()
    engine.load_weights(WEIGHTS.items(), 2)
    assert len(engine.generate(PROMPTS, SAMPLING)) == len(PROMPTS)


def test_every_server_proves_its_weights(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(*pair)
    short = Sampling(num_completions=1, max_new_tokens=4)
    whole = engine.generate(PROMPTS, short)
    for prompts in (PROMPTS, PROMPTS[:1]):
        before = [server.asked() for server in pair]
        parts = engine.sample_each(prompts, short)
        assert [part.name for part in parts] == [server.url for server in pair]
        assert {prompt for part in parts for prompt in part.prompts} == set(prompts)
        for part in parts:
            assert part.groups == [whole[PROMPTS.index(prompt)] for prompt in part.prompts]
        after = [server.asked() for server in pair]
        assert [new - old for new, old in zip(after, before, strict=True)] == [len(part.prompts) for part in parts]
    pair[0].kill()
    assert [part.name for part in engine.sample_each(PROMPTS, short)] == [pair[1].url]


def test_weights_that_are_wrong_reach_nobody(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(*pair)
    broken = WEIGHTS | {"model.norm.weight": torch.full((128,), torch.nan)}
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not finite"):
        engine.load_weights(broken.items(), 2)
    with pytest.raises(ValueError, match="they must be loaded first"):
        engine.generate(PROMPTS, SAMPLING)


NAMED = [(f"weight {index}", torch.full((3,), float(index))) for index in range(20)]


def _receiver(into: list[tuple[str, Tensor]], num_taken: int = 100) -> Receiver:
    def receive(weights: Iterator[tuple[str, Tensor]]) -> None:
        for named in weights:
            if len(into) == num_taken:
                raise EngineError("gone")
            into.append(named)

    return receive


@pytest.mark.parametrize("num_receivers", [1, 2, 3])
def test_all_receivers_get_all_weights(num_receivers: int) -> None:
    received: list[list[tuple[str, Tensor]]] = [[] for _ in range(num_receivers)]
    failures = fan_out(iter(NAMED), torch.float32, [_receiver(into) for into in received])
    assert failures == [None] * num_receivers
    for into in received:
        assert [name for name, _ in into] == [name for name, _ in NAMED]
        assert all(torch.equal(got, sent) for (_, got), (_, sent) in zip(into, NAMED, strict=True))


def test_a_receiver_that_fails_holds_up_nobody() -> None:
    lost: list[tuple[str, Tensor]] = []
    whole: list[tuple[str, Tensor]] = []
    failures = fan_out(iter(NAMED), torch.bfloat16, [_receiver(lost, 3), _receiver(whole)])
    assert isinstance(failures[0], EngineError)
    assert failures[1] is None
    assert (len(lost), len(whole)) == (3, len(NAMED))
    assert {tensor.dtype for _, tensor in whole} == {torch.bfloat16}
    rest = iter(NAMED)
    assert all(fan_out(rest, torch.float32, [_receiver([], 2), _receiver([], 4)]))
    assert list(rest) == []  # other ranks gather all


@pytest.mark.parametrize("num_receivers", [1, 2])
def test_an_error_of_the_weights_ends_all_receivers(num_receivers: int) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from NAMED[:5]
        raise ValueError("not finite")

    ended: list[str] = []

    def receive(weights: Iterator[tuple[str, Tensor]]) -> None:
        for _ in weights:
            pass
        ended.append("as if all had come")

    with pytest.raises(ValueError, match="not finite"):
        fan_out(broken(), torch.float32, [receive] * num_receivers)
    assert ended == []
