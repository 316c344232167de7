"""Weights pushed to servers that are sampling: what is told in which order, which weights drew what, and failures."""

import threading
import time
from typing import Any

import pytest
import torch

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import EngineError, VLLMServerEngine
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.link import HOLD, RESET_OF_ALL
from maxk_lightning.types import Completion, Prompt, Sampling, Segment
from tests.rollouts.engines.conftest import Make
from tests.support.served import Served

PROMPTS = [Prompt(problem_id=str(seed), token_ids=(5, 6, seed), seed=seed) for seed in range(7, 9)]
SAMPLING = Sampling(num_completions=4, max_new_tokens=4)
NUM_ALL = 8
IN_FLIGHT: dict[str, Any] = {"in_flight_weight_updates": True, "timeout_s": 3600.0, "max_connections": NUM_ALL}
WEIGHTS = load_model("builtin").state_dict()
MOVED = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
NOT_FINITE = WEIGHTS | {"model.norm.weight": torch.full((128,), torch.nan)}


class Sampled:
    """What a thread samples that is held in the middle of every completion."""

    def __init__(self, engine: VLLMServerEngine, *servers: Served) -> None:
        self.groups: list[list[Completion]] = []
        self.error: Exception | None = None
        self._servers = servers
        self._engine = engine
        for server in servers:
            server.plan(hold=True)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while sum(server.asked("held") for server in servers) < NUM_ALL:
            time.sleep(0.01)

    def _run(self) -> None:
        try:
            self.groups = self._engine.generate(PROMPTS, SAMPLING)
        except (EngineError, ValueError) as error:
            self.error = error

    def end(self, *alive: Served) -> None:
        """Let the servers go on."""
        for server in alive:
            server.plan()
        self._thread.join(60)
        assert not self._thread.is_alive()


def _flat(groups: list[list[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def _told(server: Served) -> list[str]:
    return list(Server(server.url, 30.0).get("log")["told"])


def test_a_push_holds_the_server_and_lets_it_go_on_with_nothing_old(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(pair[0], **IN_FLIGHT)
    engine.load_weights(MOVED.items(), 2)
    assert _told(pair[0]) == [HOLD, "collective_rpc", RESET_OF_ALL, "update_weight_version", "resume"] * 2


def test_tokens_tell_which_weights_drew_them(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(*pair, **IN_FLIGHT)
    old = engine.generate(PROMPTS, SAMPLING)
    sampled = Sampled(engine, *pair)
    engine.load_weights(MOVED.items(), 4)
    sampled.end(*pair)
    new = engine.generate(PROMPTS, SAMPLING)
    for before, amid, after in zip(*map(_flat, (old, sampled.groups, new)), strict=True):
        assert [each.segments for each in (before, after)] == [(Segment(0, 1),), (Segment(0, 4),)]
        assert amid.segments == (Segment(0, 1), Segment(2, 4))
        assert amid.token_ids == before.token_ids[:2] + after.token_ids[2:]
        assert amid.logprobs == before.logprobs[:2] + after.logprobs[2:]
    assert old != new


@pytest.mark.parametrize(
    "plan",
    [
        {"fail_at": "pause"},
        {"fail_at": "collective_rpc"},
        {"fail_at": "reset_prefix_cache"},
        {"fail_at": "resume"},
        {"die_at": "collective_rpc"},
        {"die_at": "resume"},
    ],
    ids=lambda plan: " ".join(*plan.items()),
)
def test_nobody_waits_for_a_server_that_failed_amid_a_push(
    pair: tuple[Served, Served], make: Make, plan: dict[str, str]
) -> None:
    """Its requests are held for ever, or it may have weights that are new in part."""
    engine = make(*pair, **IN_FLIGHT)
    sampled = Sampled(engine, *pair)
    pair[1].plan(hold=True, **plan)
    engine.load_weights(MOVED.items(), 2)
    sampled.end(pair[0])
    assert sampled.error is None
    assert {completion.segments for completion in _flat(sampled.groups)} == {
        (Segment(0, 1), Segment(2, 2)),
        (Segment(0, 2),),
    }
    assert pair[0].asked() == NUM_ALL

    if "die_at" in plan:
        pair[1].process.wait()
        pair[1].start()
    pair[1].plan()
    engine.load_weights(WEIGHTS.items(), 3)  # it is taken back, and goes on
    assert {completion.segments for completion in _flat(engine.generate(PROMPTS, SAMPLING))} == {(Segment(0, 3),)}
    assert pair[1].asked() > (4 if "fail_at" in plan else 0)


@pytest.mark.parametrize("plan", [{"fail_at": "resume"}, {"die_at": "collective_rpc"}], ids=str)
def test_without_another_server_the_sampling_fails_too(
    pair: tuple[Served, Served], make: Make, plan: dict[str, str]
) -> None:
    engine = make(pair[0], **IN_FLIGHT)
    sampled = Sampled(engine, pair[0])
    pair[0].plan(hold=True, **plan)
    with pytest.raises(EngineError, match="resume" if "fail_at" in plan else "collective_rpc"):
        engine.load_weights(MOVED.items(), 2)
    sampled.end()
    assert isinstance(sampled.error, EngineError)
    assert engine.version is None


def test_weights_that_are_wrong_end_the_sampling_too(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(*pair, **IN_FLIGHT)
    sampled = Sampled(engine, *pair)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not finite"):
        engine.load_weights(NOT_FINITE.items(), 2)
    sampled.end()
    assert isinstance(sampled.error, EngineError)


def test_a_server_that_was_started_anew_has_nobodys_weights(pair: tuple[Served, Served], make: Make) -> None:
    engine = make(pair[0], **IN_FLIGHT)
    pair[0].kill()
    pair[0].start()
    with pytest.raises(EngineError, match="has other weights than it was given"):
        engine.generate(PROMPTS, SAMPLING)
    with pytest.raises(EngineError, match="no vLLM server is left that has the last weights"):
        engine.generate(PROMPTS, SAMPLING)
