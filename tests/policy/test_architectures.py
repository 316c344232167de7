"""Every architecture: packed groups have the log-probs, entropies and gradients of each completion alone, or a refusal.

The oracle is the forward pass of transformers on one prompt with one completion, without a mask of ours.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    Llama4TextConfig,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    StableLmConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from maxk_lightning.policy import Policy, build_policy, load_model
from maxk_lightning.policy.masks import visible
from maxk_lightning.policy.packing import pack
from maxk_lightning.policy.self_check import checked_policy
from maxk_lightning.rollouts.engines.transformers.engine import TransformersEngine
from maxk_lightning.types import Prompt, Sampling
from tests.support.architectures import CONFIGS, SIZES, VOCABULARY, WINDOW, random_model, save_tokenizer

QUICK = ["llama", "qwen2 with window", "gemma2", "gemma3", "mistral", "granite", "gpt_oss", "mixtral"]
ARCHITECTURES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in CONFIGS]
TEMPERATURE = 0.7
LENGTHS = {WINDOW - 2: [3, WINDOW + 3, 0, 1], 2 * WINDOW + 3: [8, 2, 5, 7]}
"Tokens of a prompt -> of its completions: shorter and longer than the window."


def _tokens(length: int, generator: torch.Generator) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


_GENERATOR = torch.Generator().manual_seed(1)
PROMPTS = [_tokens(length, _GENERATOR) for length in LENGTHS]
COMPLETIONS = [[_tokens(length, _GENERATOR) for length in group] for group in LENGTHS.values()]


def _alone(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of a completion's tokens in a forward pass of its own."""
    logits_TV = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    logprobs_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(completion).long()[:, None]).squeeze(1)
    return logprobs_T, -torch.xlogy(probs_TV := logits_TV.detach().softmax(-1), probs_TV).sum(-1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_groups_equal_each_completion_alone(name: str) -> None:
    alone = random_model(name)
    policy = checked_policy(copy.deepcopy(alone), name).train()  # training mode: dropout must be off in it
    flat = [(p, c) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]
    expected = [_alone(alone, prompt, completion) for prompt, completion in flat]
    coefficients_BT = torch.randn(len(flat), max(len(c) for _, c in flat), generator=torch.Generator().manual_seed(0))
    sum((coefficients_BT[i, : len(t)] * t).sum() for i, (t, _) in enumerate(expected)).backward()  # type: ignore[union-attr]
    for max_row_tokens in (None, 1, 2 * WINDOW + 8):
        policy.zero_grad()
        stats = policy(pack(PROMPTS, COMPLETIONS, max_row_tokens), TEMPERATURE)
        for row, (logprobs_T, entropies_T) in enumerate(expected):
            end = len(logprobs_T)
            torch.testing.assert_close(stats.logprobs_BT[row, :end], logprobs_T, atol=3e-5, rtol=1e-5)
            torch.testing.assert_close(stats.entropies_BT[row, :end], entropies_T, atol=3e-5, rtol=1e-5)
        (stats.logprobs_BT * coefficients_BT).sum().backward()
        for ours, theirs in zip(policy.model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-4)  # up to 60 large


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_embedded_engine_samples_from_the_same_policy(name: str, tmp_path: Path) -> None:
    random_model(name).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    prompts = [Prompt(problem_id=str(i), token_ids=tuple(ids), seed=i) for i, ids in enumerate(PROMPTS)]
    sampling = Sampling(num_completions=3, max_new_tokens=2 * WINDOW, temperature=TEMPERATURE)
    groups = TransformersEngine(str(tmp_path), device="cpu").generate(prompts, sampling)
    policy = build_policy(str(tmp_path))
    with torch.no_grad():
        stats = policy(pack(PROMPTS, [[c.token_ids for c in group] for group in groups]), TEMPERATURE)
    for row, completion in enumerate(completion for group in groups for completion in group):
        end = len(completion.token_ids)
        torch.testing.assert_close(stats.logprobs_BT[row, :end], torch.tensor(completion.logprobs), atol=3e-5, rtol=0)
        torch.testing.assert_close(stats.entropies_BT[row, :end], torch.tensor(completion.entropies), atol=3e-5, rtol=0)


def test_a_window_counts_positions_not_columns() -> None:
    rows = pack([[3] * 4], [[[5], [6, 7, 8]]])
    seen = visible(rows, window=3)[0, 0]
    assert seen[5].tolist() == [False, False, True, True, False, True, False, False]  # 6, behind prompt and 5
    assert seen[7].tolist() == [False, False, False, False, False, True, True, True]  # 8 sees its own completion only


REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "mamba": (MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2), "recurrent layers"),
    "qwen3_next": (
        Qwen3NextConfig(**SIZES, num_experts=4, moe_intermediate_size=16, layer_types=["linear_attention"] * 2),
        "recurrent layers",
    ),
    "llama4": (
        Llama4TextConfig(**SIZES, num_local_experts=2, intermediate_size_mlp=48, attention_chunk_size=8),
        "chunked_attention",
    ),
    "bloom": (BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4), "takes no position_ids"),
    "bidirectional gemma3": (
        Gemma3TextConfig(**SIZES, head_dim=8, use_bidirectional_attention=True),
        "looks ahead",
    ),
    "bert": (BertConfig(**SIZES), "away from those of its own forward pass"),
    "stablelm": (StableLmConfig(**SIZES), "away from those of its own forward pass"),
    "gpt_neo": (
        GPTNeoConfig(
            vocab_size=60, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
        ),
        "layers of the kind local",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^model\.policy: .*{type(model).__name__}.* is not supported: .*{reason}"):
        build_policy(str(tmp_path))


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=60, d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.policy: cannot load .*T5Config"):
        build_policy(str(tmp_path))


def test_a_description_is_refused_as_a_model_is(tmp_path: Path) -> None:
    """Other ranks of a sharded run, and `--dry_run`, only describe a policy."""
    MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, architectures=["MambaForCausalLM"]).save_pretrained(
        tmp_path
    )
    (tmp_path / "model.safetensors").touch()
    with torch.device("meta"), pytest.raises(ValueError, match="recurrent layers"):
        build_policy(str(tmp_path), has_weights=False)


def test_a_computation_that_the_policy_does_not_know_is_refused() -> None:
    model = random_model("llama")

    class Louder(type(model)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = 2 * outputs.logits
            return outputs

    louder = Louder(model.config)
    louder.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"^model\.policy: mine \(Louder\) is not supported: .* nats per token away"):
        checked_policy(louder, "mine")


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = random_model("mistral").train()
    policy = checked_policy(model, "mistral")
    assert policy.training
    assert model.training
    assert model.config.sliding_window == WINDOW


def test_rotary_frequencies_that_depend_on_the_length_are_refused_beyond_it() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
    model = AutoModelForCausalLM.from_config(
        Phi3Config(**SIZES, original_max_position_embeddings=16, rope_parameters=rope)
    )
    policy = checked_policy(model, "phi3")
    policy(pack([[3] * 8], [[[4] * 8, [5]]]), 1.0)
    with pytest.raises(ValueError, match=r"^model\.policy: .*Phi3ForCausalLM.* beyond 16 tokens"):
        policy(pack([[3] * 8], [[[4] * 9, [5]]]), 1.0)


def test_attention_that_takes_no_mask_is_refused() -> None:
    model = random_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"^model\.policy: .*flash_attention_2, packed rows need sdpa or eager"):
        Policy(model)


def test_gemma2_is_loaded_with_attention_that_caps_its_scores(tmp_path: Path) -> None:
    random_model("gemma2").save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).config._attn_implementation == "eager"
