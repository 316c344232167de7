"""Entropies by slot against those of each request's own logits, through a batch that vLLM might schedule."""

import math
import random

import pytest
import torch

from maxk_lightning.rollouts.engines.vllm.slot_entropies import SlotEntropies

NUM_SLOTS, NUM_TOKENS, VOCABULARY = 5, 40, 11


def _entropy(logits_V: torch.Tensor, temperature: float) -> float:
    return float(torch.distributions.Categorical(logits=logits_V.double() / temperature).entropy())


class _Request:
    def __init__(self, name: str, draw: random.Random, generator: torch.Generator) -> None:
        self.name = name
        self.num_prompt_tokens = draw.randint(1, 12)
        self.num_tokens = draw.randint(1, 14)
        self.temperature = draw.choice([0.5, 1.0, 2.0])
        self.length = 0  # tokens that were computed
        self.logits_LV = 3.0 * torch.randn(NUM_TOKENS, VOCABULARY, generator=generator)  # by computed tokens
        self.expected: list[float] = []
        self.slot: int | None = None


def test_every_token_keeps_its_entropy_through_chunks_preemption_and_slots_that_change_hands() -> None:
    draw = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    entropies = SlotEntropies(NUM_SLOTS, NUM_TOKENS, torch.device("cpu"))
    waiting = [_Request(str(number), draw, generator) for number in range(40)]
    running: list[_Request] = []
    ended: list[_Request] = []
    num_preempted = num_chunks = 0
    while waiting or running:
        free = set(range(NUM_SLOTS)) - {request.slot for request in running}
        while waiting and free:
            request = waiting.pop(0)
            request.slot = draw.choice(sorted(free))
            free.discard(request.slot)
            entropies.add(request.slot, request.name, request.temperature, request.num_prompt_tokens)
            running.append(request)
        draw.shuffle(running)  # rows change places
        for request in running:
            known = request.num_prompt_tokens + len(request.expected)
            request.length = min(known, request.length + draw.choice([3, 20]))  # a part of the prompt, or all of it
            num_chunks += request.length < known
        entropies.note(
            torch.stack([request.logits_LV[request.length] for request in running]),
            torch.tensor([request.slot for request in running]),
            torch.tensor([request.length for request in running]),
        )
        for request in list(running):
            if request.length == request.num_prompt_tokens + len(request.expected):
                request.expected.append(_entropy(request.logits_LV[request.length], request.temperature))
            if len(request.expected) == request.num_tokens:
                running.remove(request)
                ended.append(request)
            elif draw.random() < 0.1:
                num_preempted += 1
                request.length = 0
                running.remove(request)
                waiting.append(request)
        for request in [request for request in ended if draw.random() < 0.5]:  # told late: its slot may be another's
            ended.remove(request)
            told = entropies.take(request.name, request.num_tokens)
            torch.testing.assert_close(torch.tensor(told), torch.tensor(request.expected))
    assert num_preempted > 3
    assert num_chunks > 10


def test_requests_that_ask_for_nothing_leave_no_trace() -> None:
    entropies = SlotEntropies(2, 4, torch.device("cpu"))
    entropies.add(0, "asks", 1.0, 1)
    entropies.note(torch.zeros(1, 8), torch.tensor([0]), torch.tensor([1]))
    entropies.add(0, None, 0.0, 0)
    entropies.note(torch.randn(2, 8), torch.tensor([0, 1]), torch.tensor([1, 900]))
    assert entropies.take("asks", 1) == pytest.approx([math.log(8)])
