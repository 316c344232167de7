"""The recorder of entropies under vLLM's second model runner, which no CPU runs: its own loader, our arithmetic."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maxk_lightning.rollouts.engines.vllm.entropy import PROMPT_TOKENS, REQUEST, Entropies, _second_runners

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
NUM_SLOTS, VOCABULARY = 4, 13


def _recorder(entropies: Entropies) -> Any:
    """As vLLM makes it."""
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors

    states = SimpleNamespace(
        device=torch.device("cpu"),
        max_num_reqs=NUM_SLOTS,
        vocab_size=VOCABULARY,
        all_token_ids=None,
        prompt_len=None,
        prefill_len=None,
        total_len=None,
    )
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=32))
    (recorder,) = build_custom_logits_processors(config, states, False, [_second_runners(entropies)])
    return recorder


def _context(slots: list[int], positions: list[int]) -> Any:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    return LogitsContext(
        expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
        idx_mapping=torch.tensor(slots, dtype=torch.int32),
        idx_mapping_np=np.array(slots),
        expanded_local_pos=torch.zeros(len(slots), dtype=torch.int32),
        input_ids=torch.zeros(len(slots), dtype=torch.int32),
        pos=torch.tensor(positions),
        seq_lens_upper_bound_np=np.array(positions) + 1,
    )


def test_entropies_follow_slots_positions_and_temperatures() -> None:
    from vllm import SamplingParams

    entropies = Entropies()
    recorder = _recorder(entropies)
    facts = {"a": (3, 5, 0.7), "b": (0, 2, 1.0)}  # slot, tokens of the prompt, temperature
    for name, (slot, num_prompt_tokens, temperature) in facts.items():
        told = {REQUEST: name, PROMPT_TOKENS: num_prompt_tokens}
        assert recorder.add_request(slot, SamplingParams(temperature=temperature, extra_args=told))
    expected: dict[str, list[float]] = {"a": [], "b": []}
    for step in range(6):
        order = ["a", "b"] if step % 2 else ["b", "a"]
        logits_RV = 3.0 * torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(step))
        before = logits_RV.clone()
        positions = [facts[name][1] - 1 + step for name in order]  # of the token that was fed
        changed = recorder.apply(logits_RV, _context([facts[name][0] for name in order], positions))
        assert torch.equal(changed, before)
        for name, row_V in zip(order, before.double(), strict=True):
            expected[name].append(float(torch.distributions.Categorical(logits=row_V / facts[name][2]).entropy()))
    for name in facts:
        assert entropies.take(name, 6) == pytest.approx(expected[name], abs=1e-5)


def test_requests_of_vllms_own_pass() -> None:
    from vllm import SamplingParams

    recorder = _recorder(Entropies())
    assert recorder.add_request(1, SamplingParams(temperature=0.0))
    recorder.apply(torch.zeros(1, VOCABULARY), _context([1], [0]))
