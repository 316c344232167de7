"""Pre-train the tiny policy of a built-in benchmark on imperfect solutions.

    python scripts/train_tiny_policy.py --out maxk_lightning/data/builtin/policy
    python scripts/train_tiny_policy.py --variant vague --out maxk_lightning/data/builtin_vague/policy

About 20 minutes on one core. Pipelines are drawn anew for every batch, mostly less deep than those the policy is asked
later, and none of the benchmark's own is ever drawn. The same seed gives the same weights on the same machine and torch
build.
Shapes: B rows of a batch, L prompt+completion tokens.
"""

import argparse
import json
import math
import platform
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from maxk_lightning.data.mistakes import attempt
from maxk_lightning.data.pipelines import (
    OPERATIONS,
    VARIANTS,
    Step,
    Variant,
    draw_pipeline,
    fenced,
    make_splits,
    program_of,
    statement_of,
)

DEPTH_WEIGHTS = {1: 2, 2: 3, 3: 4, 4: 4, 5: 1.5, 6: 1}  # the benchmark asks 3 to 6, equally often
BPE_VOCAB_SIZE = 480  # bytes and English words; CODE_PIECES and NUMBERS come on top
CODE_PIECES = re.compile(r" for [^\d\n]+|[^\s\d]{2,}")
NUMBERS = tuple(f" {number}" for number in range(-20, 41))
PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED_LABEL = -100
MAX_LENGTH = 512
WARMUP_STEPS = 100
GRADIENT_NORM = 1.0


def render(statement: str) -> str:
    """The prompt as the chat template renders it; the completion and IM_END follow."""
    return f"{IM_START}user\n{statement}{IM_END}\n{IM_START}assistant\n"


def draw_pairs(
    rng: random.Random, variant: Variant, depth: int, count: int, held_out: set[object]
) -> list[tuple[str, str]]:
    """Draw (statement, imperfect solution) pairs; pipelines and statements of the benchmark are left out."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pipeline = draw_pipeline(rng, depth, variant)
        statement = statement_of(rng, pipeline)
        if statement is None or pipeline.steps in held_out or statement in held_out:
            continue
        pairs.append((statement, fenced(program_of(attempt(rng, pipeline, variant)))))
    return pairs


def benchmark_keys(variant: Variant) -> set[object]:
    """Everything that pre-training must not see."""
    problems = [pair for split in make_splits(variant).values() for pair in split]
    return {pipeline.steps for _, pipeline in problems} | {problem.prompt for problem, _ in problems}


def build_tokenizer(rng: random.Random, variant: Variant, held_out: set[object], num_pairs: int) -> Qwen2Tokenizer:
    """Train Qwen2's byte-level BPE on statements, then add long stretches of code and small numbers as whole tokens.

    transformers gives every model of type qwen2 the splitting rules of `Qwen2Tokenizer`, whatever tokenizer.json says,
    and under them a program is 2.5 times as long; added tokens are matched before the rules apply.
    """
    per_depth = num_pairs // len(DEPTH_WEIGHTS)
    pairs = [pair for depth in DEPTH_WEIGHTS for pair in draw_pairs(rng, variant, depth, per_depth, held_out)]
    bpe = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCAB_SIZE,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"user\nassistant\n{statement}" for statement, _ in pairs), trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token=IM_END,
        pad_token=PAD,
        additional_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*code_pieces(), *NUMBERS)])
    return tokenizer


def code_pieces() -> list[str]:
    """The stretches between the numbers of every line a program can have."""
    steps = [
        Step(operation.name, parameter)
        for operation in OPERATIONS.values()
        for parameter in operation.parameters or (None,)
    ]
    return sorted(set(CODE_PIECES.findall(fenced(program_of(steps)))))


def build_model(tokenizer: Qwen2Tokenizer, is_small: bool) -> Qwen2ForCausalLM:
    """A Qwen2 of 0.9 million parameters (0.1 million when small) with tied embeddings."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64 if is_small else 128,
        intermediate_size=128 if is_small else 384,
        num_hidden_layers=2 if is_small else 4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def draw_batches(
    rng: random.Random, variant: Variant, tokenizer: Qwen2Tokenizer, batch_size: int, held_out: set[object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (token ids [B, L], labels [B, L]) for ever; one depth per batch, so rows are about equally long."""
    while True:
        (depth,) = rng.choices(list(DEPTH_WEIGHTS), list(DEPTH_WEIGHTS.values()))
        rows = []
        for statement, solution in draw_pairs(rng, variant, depth, batch_size, held_out):
            prompt_ids = tokenizer.encode(render(statement), add_special_tokens=False)
            rows.append((prompt_ids, tokenizer.encode(solution + IM_END, add_special_tokens=False)))
        yield pad_rows(rows, tokenizer.pad_token_id)


def pad_rows(rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad on the right, which needs no attention mask; the loss counts completion tokens only."""
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids_BL = torch.full((len(rows), longest), pad_id)
    labels_BL = torch.full((len(rows), longest), IGNORED_LABEL)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids_BL[row, :end] = torch.tensor(prompt + completion)
        labels_BL[row, len(prompt) : end] = torch.tensor(completion)
    return ids_BL, labels_BL


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    warmup = min(WARMUP_STEPS, num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return peak * (0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)))


def completion_loss(model: Qwen2ForCausalLM, ids_BL: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean cross-entropy of the completions' tokens; logits are computed for those positions only."""
    hidden_BLD = model.model(input_ids=ids_BL, use_cache=False).last_hidden_state
    is_target_BL = labels_BL[:, 1:] != IGNORED_LABEL
    return cross_entropy(model.lm_head(hidden_BLD[:, :-1][is_target_BL]), labels_BL[:, 1:][is_target_BL])


def train(
    model: Qwen2ForCausalLM, batches: Iterator[tuple[Tensor, Tensor]], num_steps: int, peak_learning_rate: float
) -> list[float]:
    """Minimise the completions' cross-entropy; returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses = []
    started = time.monotonic()
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, num_steps, peak_learning_rate)
        ids_BL, labels_BL = next(batches)
        loss = completion_loss(model, ids_BL, labels_BL)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {step + 1}/{num_steps} loss {mean:.4f} {time.monotonic() - started:.0f} s", flush=True)
    return losses


def build_record(arguments: argparse.Namespace, losses: list[float], seconds: float) -> dict[str, object]:
    """What BUILD.json says of a run: how to repeat it and what it gave."""
    tail = losses[-50:]
    variant = VARIANTS[arguments.variant]
    options = f"--variant {arguments.variant} --out maxk_lightning/data/{variant.directory}"
    return {
        "commands": [
            f"python -m maxk_lightning.data.pipelines {options}",
            f"python scripts/train_tiny_policy.py {options}/policy",
        ],
        "arguments": {key: value for key, value in vars(arguments).items() if key != "out"},
        "benchmark_seed": variant.seed,
        "final_loss": round(sum(tail) / len(tail), 4),
        "seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line; the defaults rebuild the shipped policy."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny policy", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face directory to write")
    parser.add_argument("--variant", choices=VARIANTS, default="standard", help="of the built-in benchmark")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a 0.1 M-parameter model and a small corpus, for tests")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Build tokenizer and model, train, write the directory with its BUILD.json; returns the loss of every step."""
    arguments = parse_arguments(argv)
    started = time.monotonic()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    variant = VARIANTS[arguments.variant]
    held_out = benchmark_keys(variant)
    rng = random.Random(arguments.seed)
    tokenizer = build_tokenizer(rng, variant, held_out, num_pairs=400 if arguments.small else 8000)
    model = build_model(tokenizer, arguments.small)
    batches = draw_batches(rng, variant, tokenizer, arguments.batch_size, held_out)
    losses = train(model, batches, arguments.steps, arguments.learning_rate)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out, save_jinja_files=False)
    record = build_record(arguments, losses, time.monotonic() - started)
    (arguments.out / "BUILD.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return losses


if __name__ == "__main__":
    main()
