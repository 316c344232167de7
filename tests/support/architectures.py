"""Small random models of many architectures, built from configurations; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

VOCABULARY = 60
WINDOW = 6
"Sliding window of the models that have one."
FULL, SLIDING = "full_attention", "sliding_attention"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2 with window": lambda: Qwen2Config(**SIZES, use_sliding_window=True, **_ALTERNATING),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "gemma2": lambda: Gemma2Config(
        **SIZES, head_dim=8, **_ALTERNATING, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=8, **_ALTERNATING),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "mistral without window": lambda: MistralConfig(**SIZES, sliding_window=None),
    "phi3": lambda: Phi3Config(**SIZES, sliding_window=WINDOW, resid_pdrop=0.1, embd_pdrop=0.1),
    "phi": lambda: PhiConfig(**SIZES),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "olmo3": lambda: Olmo3Config(**SIZES, **_ALTERNATING),
    "smollm3": lambda: SmolLM3Config(**SIZES, no_rope_layers=[1, 0]),
    "granite": lambda: GraniteConfig(
        **SIZES, logits_scaling=0.5, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.7
    ),
    "cohere": lambda: CohereConfig(**SIZES, logit_scale=0.3),
    "cohere2": lambda: Cohere2Config(**SIZES, **_ALTERNATING, logit_scale=2.0),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, head_dim=8, **_ALTERNATING, num_local_experts=4, num_experts_per_tok=2, rope_parameters=None
    ),
    "mixtral": lambda: MixtralConfig(
        **SIZES, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=4, **_EXPERTS, norm_topk_prob=True),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=12, n_routed_experts=8, n_group=2, topk_group=1, **_EXPERTS,
        first_k_dense_replace=1, n_shared_experts=1,
    ),
    "falcon": lambda: FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
}  # fmt: skip


def random_model(name: str) -> PreTrainedModel:
    """A model whose attention and logits are far from flat."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.25 * torch.randn_like(parameter)
    return model.eval()


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of that vocabulary, one word per token, without a chat template."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY)}
    words_tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=words_tokenizer, eos_token="w2").save_pretrained(directory)
