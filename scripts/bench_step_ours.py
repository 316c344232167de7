"""Our side of bench_step.py: a random policy, long prompts, a trivial reward, and a fit with a clock in it."""

import argparse
import itertools
import json
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import Callback, Trainer

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.data import Builtin, PromptTemplate
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts import RolloutEngine, TransformersEngine, VLLMEngine
from maxk_lightning.rollouts.rollout import Group, Samples
from maxk_lightning.types import Problem, Sampling, Score

NUM_ITERATIONS = 3
HAS_CREDIT = "has_credit"
"Key of a problem's metadata, and column of TRL's data set."
LEARNING_RATE = 1e-5
HAS_GPU = torch.cuda.is_available()


def reward_of(text: str) -> float:
    return sum(character.islower() for character in text) / max(1, len(text))


class TrivialReward:
    """The share of lower-case letters; 0 where the whole group is to get no credit."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [
            [Score(reward=reward_of(text) if problem.metadata[HAS_CREDIT] else 0.0, verdicts=()) for text in group]
            for problem, group in zip(problems, completions, strict=True)
        ]


@dataclass(frozen=True)
class LongStatements:
    """Statements of the built-in problems, joined as long as the rendered prompt has at most so many tokens.

    One problem in `credit_every` gets credit.
    """

    num_prompts: int
    max_tokens: int
    policy: str
    credit_every: int = 1

    def load(self) -> list[Problem]:
        tokenizer, statements = load_tokenizer(self.policy), iter(Builtin("train").load())
        joined: list[Problem] = []
        for number in range(self.num_prompts):
            problem = replace(next(statements), metadata={HAS_CREDIT: number % self.credit_every == 0})
            for other in statements:
                longer = replace(problem, prompt=f"{problem.prompt}\n\n{other.prompt}")
                if len(PromptTemplate().render(longer, tokenizer, seed=0).token_ids) > self.max_tokens:
                    break
                problem = longer
            joined.append(problem)
        return joined


def write_policy(directory: str, args: argparse.Namespace) -> None:
    """A random model with the built-in tokenizer, filled up to the vocabulary; the stop token comes after it."""
    from tokenizers import AddedToken
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer: Any = load_tokenizer("builtin")
    num_missing = args.vocab - len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<|filler {i}|>", normalized=False) for i in range(num_missing)])
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    assert tokenizer.eos_token_id == args.vocab, f"--vocab must be at least {args.vocab - num_missing}"
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=max(1, args.hidden // 128),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)


def now(*, cpu: bool = not HAS_GPU) -> float:
    if HAS_GPU:
        torch.cuda.synchronize()
    return time.process_time() if cpu else time.perf_counter()


def peak_mb() -> float:
    if HAS_GPU:
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Clock(Callback):
    """When cycles end, and where a cycle of ours spends its time."""

    def __init__(self) -> None:
        self.cycle_ends: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.samples: Samples | None = None
        self._last = 0.0

    def _lap(self, part: str) -> None:
        instant = now()
        self.parts[-1][part] = self.parts[-1].get(part, 0.0) + instant - self._last
        self._last = instant

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        callback = rollout_callback(trainer)
        assert callback is not None
        assert callback.sampler.current is not None
        self.samples = callback.sampler.current.samples
        if not self.parts:
            self.parts.append({})
            self._last = now()
        self._lap("sample and score")

    def on_train_batch_start(self, *_: object) -> None:
        self._lap("other")

    def on_before_backward(self, *_: object) -> None:
        self._lap("forward")

    def on_after_backward(self, *_: object) -> None:
        self._lap("backward")

    def on_before_optimizer_step(self, *_: object) -> None:
        self._lap("clip gradients")

    def on_train_batch_end(self, *_: object) -> None:
        self._lap("optimizer, logs")

    def on_train_epoch_end(self, *_: object) -> None:
        self._lap("other")
        self.cycle_ends.append(self._last)
        self.parts.append({})


def sampling_dtype(args: argparse.Namespace) -> Any:
    return "bfloat16" if args.precision == "bf16-mixed" else "float32"


def make_parts(args: argparse.Namespace, root: str, kl_target: Any) -> tuple[PolicyModule, PromptDataModule, Trainer]:
    sampling = Sampling(num_completions=args.n, max_new_tokens=args.max_new_tokens)
    engine: RolloutEngine = TransformersEngine(
        args.policy, dtype=sampling_dtype(args), max_batch_rows=max(256, args.prompts * args.n)
    )
    if args.vllm:
        engine = VLLMEngine(args.policy, dtype=sampling_dtype(args))
    callback = RolloutCallback(engine, TrivialReward(), sampling)  # type: ignore[arg-type]
    module = PolicyModule(
        policy=args.policy,
        objective=GRPO(),
        normalisation="sequence",
        kl_coef=args.kl_coef,
        kl_target=kl_target if args.kl_coef > 0 else "old",
        optimizer=lambda params: torch.optim.Adam(params, lr=LEARNING_RATE),
        **{"prompts_per_micro_batch": args.prompts_per_pass, **json.loads(args.model_options)},
    )
    datamodule = PromptDataModule(
        train=LongStatements(args.prompts, args.prompt_tokens, args.policy, args.credit_every),
        validation=None,
        policy=args.policy,
        prompts_per_rollout=args.prompts,
        num_ppo_iterations=NUM_ITERATIONS,
        max_prompt_tokens=args.prompt_tokens,
    )
    trainer = Trainer(
        max_epochs=1 + args.cycles,
        accelerator="gpu" if HAS_GPU else "cpu",
        devices=1,
        precision=args.precision,
        default_root_dir=root,
        callbacks=[callback, Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return module, datamodule, trainer


def run_ours(args: argparse.Namespace, root: str, kl_target: str) -> dict[str, Any]:
    module, datamodule, trainer = make_parts(args, root, kl_target)
    trainer.fit(module, datamodule)
    clock = next(callback for callback in trainer.callbacks if isinstance(callback, Clock))  # type: ignore[attr-defined]
    assert clock.samples is not None
    policy, samples = module.policy, clock.samples
    assert policy is not None
    parts = {
        name: statistics.median(cycle[name] for cycle in clock.parts[1 : 1 + args.cycles]) for name in clock.parts[1]
    }
    active = [group for group in samples.groups if args.kl_coef > 0 or len(set(group.rewards)) > 1]
    train_s = sum(seconds for name, seconds in parts.items() if name != "sample and score")
    return {
        "seconds": between(clock.cycle_ends),
        "parts": parts,
        "mfu": NUM_ITERATIONS * step_flops(policy.model, active) / train_s / matmul_peak(sampling_dtype(args)),
        "peak_mb": peak_mb(),
        "tokens": samples.num_tokens,
    }


def between(instants: list[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(instants)]


def step_flops(model: Any, groups: Sequence[Group]) -> float:
    """Model FLOPs of one forward and backward pass: 6 per weight and token, 12 per pair of tokens that attention forms,
    layer and hidden unit; the head sees completion tokens only."""
    head = model.get_output_embeddings().weight
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    width = model.config.num_hidden_layers * model.config.hidden_size
    total = 0.0
    for group in groups:
        prompt = len(group.prompt.token_ids)
        lengths = [len(completion.token_ids) for completion in group.completions]
        pairs = prompt * (prompt + 1) / 2 + sum(prompt * t + t * (t + 1) / 2 for t in lengths)
        total += 6 * layers * (prompt + sum(lengths)) + 12 * width * pairs + 6 * head.numel() * sum(lengths)
    return total


def matmul_peak(dtype_name: str) -> float:
    """FLOPs per second of the best of a few large matrix products."""
    best, dtype = 0.0, getattr(torch, dtype_name)
    for size in (8192, 16384) if HAS_GPU else (512, 1024, 2048):
        a = torch.randn(size, size, dtype=dtype, device="cuda" if HAS_GPU else "cpu")
        for _ in range(5):
            started = now()
            a @ a
            best = max(best, 2 * size**3 / (now() - started))
    return best
