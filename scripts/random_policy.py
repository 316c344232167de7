"""Write a policy directory with random weights in the shape of a published model, for measurements without a hub.

    python scripts/random_policy.py 1.5B /tmp/random-1.5B

The tokenizer is the built-in one; its tokens are a small part of the model's vocabulary.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

from maxk_lightning.policy import load_tokenizer, resolve_policy

# Qwen2.5-Coder: hidden size, layers, heads, key-value heads, intermediate size, vocabulary, tied embeddings
SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "3B": (2048, 36, 16, 2, 11008, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}


def config(shape: str) -> Qwen2Config:
    """The configuration of a published size, with the stop tokens of the built-in tokenizer."""
    hidden, layers, heads, kv_heads, intermediate, vocabulary, is_tied = SHAPES[shape]
    builtin = AutoConfig.from_pretrained(resolve_policy("builtin"))
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=is_tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=32768,
        bos_token_id=builtin.bos_token_id,
        eos_token_id=builtin.eos_token_id,
        pad_token_id=builtin.pad_token_id,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config(args.shape))
    model.save_pretrained(args.out)
    load_tokenizer("builtin").save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters")


if __name__ == "__main__":
    main()
