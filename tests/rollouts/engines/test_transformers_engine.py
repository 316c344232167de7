"""The embedded engine against an independent forward pass and exact distributions."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from maxk_lightning.policy import Policy, load_model, load_tokenizer
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts.engine import EngineLoad
from maxk_lightning.rollouts.engines.text import answer_text
from maxk_lightning.rollouts.engines.transformers.engine import TransformersEngine, draw
from maxk_lightning.types import Completion, Prompt, Sampling

PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 12 + 4 * i)), seed=100 + i) for i in range(4)]
SAMPLING = Sampling(num_completions=6, max_new_tokens=40, temperature=0.8)


@pytest.fixture(scope="module")
def engine(random_policy: str) -> TransformersEngine:
    return TransformersEngine(random_policy, max_batch_rows=24)


@pytest.fixture(scope="module")
def groups(engine: TransformersEngine) -> list[list[Completion]]:
    return engine.generate(PROMPTS, SAMPLING)


def test_logprobs_and_entropies_are_those_of_a_plain_forward_pass(
    random_policy: str, groups: list[list[Completion]]
) -> None:
    model = load_model(random_policy)
    for prompt, completion in [(p, c) for p, group in zip(PROMPTS, groups, strict=True) for c in group]:
        ids = torch.tensor([prompt.token_ids + completion.token_ids])
        with torch.no_grad():
            logits_TV = model(ids).logits[0, len(prompt.token_ids) - 1 : -1] / SAMPLING.temperature
        logprobs_TV = F.log_softmax(logits_TV, dim=-1)
        expected = logprobs_TV[torch.arange(len(completion.token_ids)), torch.tensor(completion.token_ids)]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-5, rtol=1e-5)
        entropies = torch.distributions.Categorical(logits=logits_TV).entropy()
        torch.testing.assert_close(torch.tensor(completion.entropies), entropies, atol=2e-5, rtol=1e-5)


def test_completions_end_at_the_first_stop_token(engine: TransformersEngine, groups: list[list[Completion]]) -> None:
    stop = 2
    completions = [completion for group in groups for completion in group]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert stop not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == stop) == (completion.finish_reason == "stop")
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == SAMPLING.max_new_tokens


def test_a_sample_depends_on_its_seed_alone(random_policy: str, groups: list[list[Completion]]) -> None:
    small_batches = TransformersEngine(random_policy, max_batch_rows=6)
    for group, other in zip(groups, small_batches.generate(PROMPTS, SAMPLING), strict=True):
        assert [completion.token_ids for completion in group] == [completion.token_ids for completion in other]
    fewer = small_batches.generate([PROMPTS[3]], Sampling(num_completions=2, max_new_tokens=20, temperature=0.8))[0]
    assert [completion.token_ids for completion in fewer] == [c.token_ids[:20] for c in groups[3][:2]]


def test_samples_and_prompts_draw_different_numbers(groups: list[list[Completion]]) -> None:
    texts = [completion.token_ids[:10] for group in groups for completion in group]
    assert len(set(texts)) == len(texts)


def test_new_weights_change_the_policy_and_must_be_complete(random_policy: str) -> None:
    engine = TransformersEngine(random_policy)
    before = engine.generate(PROMPTS[:1], SAMPLING)
    weights = {name: tensor * 0.5 for name, tensor in load_model(random_policy).state_dict().items()}
    engine.load_weights(weights.items(), version=3)
    after = engine.generate(PROMPTS[:1], SAMPLING)
    assert engine.version == 3
    assert [c.token_ids for c in before[0]] != [c.token_ids for c in after[0]]
    model = load_model(random_policy)
    model.load_state_dict(weights)
    rows = pack([PROMPTS[0].token_ids], [[after[0][0].token_ids]])
    logprobs_BT = Policy(model)(rows, SAMPLING.temperature).logprobs_BT
    torch.testing.assert_close(logprobs_BT[0].detach(), torch.tensor(after[0][0].logprobs), atol=2e-5, rtol=1e-5)
    name = next(iter(weights))
    with pytest.raises(ValueError, match="unknown"):
        engine.load_weights([("no.such.weight", weights[name])], version=4)
    with pytest.raises(ValueError, match="was not given"):
        engine.load_weights([(name, weights[name])], version=4)


def test_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.0, -30.0])
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens, logprobs, entropies = draw(logits_V.expand(10_000, -1), uniforms, 0.7, 1.0)
    probs_V = torch.softmax(logits_V / 0.7, dim=-1)
    counts_V = torch.bincount(tokens, minlength=5) / 10_000
    torch.testing.assert_close(counts_V, probs_V, atol=1.01e-4, rtol=0)  # a grid of 10,000 points resolves 1e-4
    torch.testing.assert_close(logprobs, probs_V.log()[tokens])
    torch.testing.assert_close(entropies[0], torch.distributions.Categorical(probs=probs_V).entropy())
    assert all(a <= b for a, b in pairwise(tokens.tolist()))


def test_draw_never_takes_a_token_without_mass() -> None:
    logits_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    tokens, _, _ = draw(logits_BV, torch.tensor([0.0, 0.5, 1.0 - 2**-53], dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == [1, 3, 3]


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, [2]), (0.55, [2, 0]), (0.99, [2, 0, 3, 1])])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float, kept: list[int]) -> None:
    probs_V = torch.tensor([0.3, 0.1, 0.45, 0.15])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens, logprobs, _ = draw(probs_V.log().expand(1000, -1), uniforms, 1.0, top_p)
    assert set(tokens.tolist()) == set(kept)
    expected_V = probs_V / probs_V[kept].sum()
    torch.testing.assert_close(logprobs, expected_V.log()[tokens], atol=1e-6, rtol=1e-5)


def test_a_bad_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_rows"):
        TransformersEngine(max_batch_rows=0)


def cut_at_stop_strings(policy: str, completion: Completion, stop: tuple[str, ...]) -> Completion:
    """What a completion sampled without stop strings is with them: its first tokens whose text holds one."""
    tokenizer = load_tokenizer(policy)
    for length in range(1, len(completion.token_ids) + 1):
        text = tokenizer.decode(completion.token_ids[:length], skip_special_tokens=True)
        if any(string in text for string in stop):
            assert completion.entropies is not None
            return Completion(
                token_ids=completion.token_ids[:length],
                logprobs=completion.logprobs[:length],
                entropies=completion.entropies[:length],
                text=text,
                finish_reason="stop",
            )
    return completion


def strings_inside(groups: list[list[Completion]]) -> tuple[str, ...]:
    """Strings of two and of three characters, each from inside some completion."""
    texts = [c.text for group in groups for c in group if c.text.isascii() or len(c.text) > 12]
    return texts[0][4:6], texts[1][7:10]


def test_a_completion_ends_with_the_token_that_completes_a_stop_string(
    random_policy: str, engine: TransformersEngine, groups: list[list[Completion]]
) -> None:
    stop = strings_inside(groups)
    expected = [[cut_at_stop_strings(random_policy, completion, stop) for completion in group] for group in groups]
    assert expected != groups
    stopped = engine.generate(PROMPTS, replace(SAMPLING, stop=stop))
    for group, expected_group in zip(stopped, expected, strict=True):
        for completion, wanted in zip(group, expected_group, strict=True):
            # rows leave the batch at other times: log-probs differ in the last bits
            assert replace(completion, logprobs=(), entropies=()) == replace(wanted, logprobs=(), entropies=())
            torch.testing.assert_close(torch.tensor(completion.logprobs), torch.tensor(wanted.logprobs))


def test_the_text_begins_with_the_prefill(random_policy: str, engine: TransformersEngine) -> None:
    tokenizer = load_tokenizer(random_policy)
    prefill = "```python\ndef é("
    prompt = Prompt(problem_id="0", token_ids=tuple(tokenizer("Ask." + prefill)["input_ids"]), seed=1, prefill=prefill)
    assert answer_text(tokenizer, prompt, tokenizer("x):<|im_end|>")["input_ids"]) == prefill + "x):"
    (group,) = engine.generate([prompt], SAMPLING)
    for completion in group:
        assert completion.text == prefill + tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_bfloat16_samples_with_the_logprobs_of_the_bfloat16_model(random_policy: str) -> None:
    engine = TransformersEngine(random_policy, dtype="bfloat16")
    groups = engine.generate(PROMPTS, SAMPLING)
    load = EngineLoad(num_completions=24, max_tokens=64, gpu_bytes=None)
    whole, half = TransformersEngine(random_policy).memory(load), engine.memory(load)
    assert (half.weights_dtype, whole.weights_dtype) == (torch.bfloat16, torch.float32)
    assert half.kv_cache_bytes * 2 == whole.kv_cache_bytes
    gaps = {dtype: _mean_gap(random_policy, dtype, groups) for dtype in (torch.bfloat16, torch.float32)}
    assert 2 * gaps[torch.bfloat16] < gaps[torch.float32] < 0.1  # sums in another order; rounded weights
    assert engine.generate(PROMPTS, SAMPLING) == groups


def _mean_gap(policy: str, dtype: torch.dtype, groups: list[list[Completion]]) -> float:
    """Mean distance of log-probs from those of a plain forward pass in `dtype`, made of its logits in float32."""
    model, gaps = load_model(policy, dtype), []
    for prompt, completion in [(p, c) for p, group in zip(PROMPTS, groups, strict=True) for c in group]:
        ids = torch.tensor([prompt.token_ids + completion.token_ids])
        with torch.no_grad():
            logits_TV = model(ids).logits[0, len(prompt.token_ids) - 1 : -1].float() / SAMPLING.temperature
        logprobs_T = logits_TV.log_softmax(-1)[torch.arange(len(logits_TV)), torch.tensor(completion.token_ids)]
        gaps.append((torch.tensor(completion.logprobs) - logprobs_T).abs())
    return float(torch.cat(gaps).mean())
