"""A full training cycle against TRL's GRPOTrainer: rollout, a trivial reward, three PPO iterations.

    pip install -e '.[bench]'
    python scripts/bench_step.py --json step.json                  # a CPU: both sample with transformers; 8 CPU minutes
    python scripts/bench_step.py --growth --repeats 1              # one size changed at a time; about 10 CPU minutes
    python scripts/bench_step.py --policy Qwen/Qwen2.5-Coder-1.5B-Instruct --vllm --prompts 8 --max_new_tokens 1024 \\
      --no-trl_at_once                                             # a GPU

Both sides train the same random Qwen2 model (its stop token cannot be sampled, so that every completion has
max_new_tokens tokens) on the same prompts, with the lengths of the paper's recipe: statements of built-in problems,
joined up to 512 tokens, n = 8, 256 new tokens. GRPO advantages, the clipped surrogate, a k3 penalty against the initial
policy, Adam, float32 (bf16-mixed on a GPU), no logging, no checkpoints. A pass holds one prompt and its n completions
on both sides (--prompts_per_pass; TRL: per_device_train_batch_size = n, the rest gradient accumulation). TRL runs a
second time with all prompts in one pass, and the faster of the two counts. Both ask the reference policy once per
rollout; TRL's other settings are its defaults, its attention is transformers' default (sdpa). TRL reads a
prompt once per completion, which is most of what is measured here.
A cycle ends with its third optimizer step; the first cycle of a process is not counted. Each measurement is a process
of its own, the sides take turns. Seconds are CPU time on a CPU, which others may use, too, and wall-clock time on a
GPU. Last of all one gradient of TRL's loss on completions that we sampled is compared with ours.

Measured on a shared 2-core CPU machine beside other load, one thread, float32, this script's sizes, 3 repeats:
  CPU s per cycle 8.0 (7.7 with the penalty to pi_old), TRL 20.2, with all prompts in one pass 20.8:
  speed_vs_trl 2.38 (2.57).
  Peak MB 1123 (1171), 1761, 2079. train_mfu 0.29 (0.33). Of our cycle: sampling and scoring 26 %, forward passes 33 %
  (the reference's among them), backward 40 %, optimizer, clipping and logs 1 %. Gradients agree: cosine 1.0000, ratio
  of norms 1.0000.
--growth, one run each beside other load, so rough: speed_vs_trl (CPU s of a cycle, ours and TRL's; train_mfu)
  prompts of at most 128 tokens 1.25 (7.4, 9.3; 0.25): the goal of 2 is reached where prompts are long, not here;
  max_new_tokens 64: 4.8 (2.6, 12.1; 0.35), 512: 2.2 (15.0, 33.1; 0.32); n 4: 2.7 (4.0, 10.7; 0.40), 16: 2.7
  (14.2, 38.1; 0.30); vocabulary 8192: 3.6 (10.7, 39.0; 0.32).
What profiling found, with what it gained:
- Packed rows compared every token with every other of their row under a mask: attention was 43 % of a step (prompts of
  about 100 tokens). Rows of one completion each and the causal kernel: 17 %.
- The reference policy was asked in every PPO iteration: at 8 prompts of the built-in problems, 128 new tokens, hidden
  256, 4 layers a cycle with it took 22.5 CPU s, one with the penalty to pi_old, which asks nobody, 18.4. Asked once per
  rollout, and at the sizes above: 8.0 and 7.7.
- At 512 + 256 tokens attention was 37 % of a cycle again, the prompts attending once per completion. On a CPU they
  attend once per group: forward passes of a cycle 7.0 -> 5.8 s, backward 8.5 -> 6.8 (4 layers, one run each).
- Sampling: a step's query heads that share a key head attend in one product: attention of a step 1.66 -> 0.90 ms.
- torch.compile of the decoder layers: forward and backward of 8 groups, one at a time and all of one shape, took
  4.0 CPU s (median of 3.4 to 4.3) against 4.7, after 57 s of compiling. Real groups have many shapes: no option yet.
What is left: sampling, now a quarter of a cycle; short prompts, which leave little to share.

Ratios: `speed_vs_trl` (seconds per cycle, TRL / ours); `speed_vs_trl_kl_old`, ours with the paper's penalty, which is
against the policy that sampled and needs no second model; `train_mfu`, model FLOPs of the training steps (a shared
prompt counts once, the reference model does not count) over what the largest matrix product reaches here; with --growth
`speed_vs_trl/NAME=VALUE`.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.data import Builtin, PromptTemplate
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.losses import StepCounts
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts import RolloutEngine, TransformersEngine, VLLMEngine
from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.training.batch import to_batch
from maxk_lightning.types import Problem, Sampling, Score

OURS, OURS_KL_OLD = "maxk_lightning", "maxk_lightning, KL to pi_old"
THEIRS, THEIRS_AT_ONCE = "TRL", "TRL, all prompts in one pass"
NUM_ITERATIONS = 3
GROWTH = {"prompt_tokens": (128,), "max_new_tokens": (64, 512), "n": (4, 16), "vocab": (8192,)}
KL_COEF = 0.01
LEARNING_RATE = 1e-5
HAS_GPU = torch.cuda.is_available()


def reward_of(text: str) -> float:
    return sum(character.islower() for character in text) / max(1, len(text))


class TrivialReward:
    """The share of lower-case letters."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [[Score(reward=reward_of(text), verdicts=()) for text in group] for group in completions]


@dataclass(frozen=True)
class LongStatements:
    """Statements of the built-in problems, joined as long as the rendered prompt has at most so many tokens."""

    num_prompts: int
    max_tokens: int
    policy: str

    def load(self) -> list[Problem]:
        tokenizer, statements = load_tokenizer(self.policy), iter(Builtin("train").load())
        joined: list[Problem] = []
        for _ in range(self.num_prompts):
            problem = next(statements)
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
        self.rollout: Rollout | None = None
        self._last = 0.0

    def _lap(self, part: str) -> None:
        instant = now()
        self.parts[-1][part] = self.parts[-1].get(part, 0.0) + instant - self._last
        self._last = instant

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.rollout = trainer.datamodule.buffers["fit"].rollout  # type: ignore[attr-defined]
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


def make_parts(args: argparse.Namespace, root: str, kl_target: Any) -> tuple[PolicyModule, PromptDataModule, Trainer]:
    sampling = Sampling(num_completions=args.n, max_new_tokens=args.max_new_tokens)
    engine: RolloutEngine = TransformersEngine(args.policy, max_batch_rows=max(256, args.prompts * args.n))
    if args.vllm:
        engine = VLLMEngine(args.policy, dtype="bfloat16" if HAS_GPU else "float32")
    callback = RolloutCallback(engine, TrivialReward(), sampling)  # type: ignore[arg-type]
    module = PolicyModule(
        policy=args.policy,
        objective=GRPO(),
        normalisation="sequence",
        kl_coef=KL_COEF,
        kl_target=kl_target,
        optimizer=lambda params: torch.optim.Adam(params, lr=LEARNING_RATE),
        **{"prompts_per_micro_batch": args.prompts_per_pass, **json.loads(args.model_options)},
    )
    datamodule = PromptDataModule(
        train=LongStatements(args.prompts, args.prompt_tokens, args.policy),
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
        precision="bf16-mixed" if HAS_GPU else "32-true",
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
    assert clock.rollout is not None
    policy, rollout = module.policy, clock.rollout
    assert policy is not None
    parts = {
        name: statistics.median(cycle[name] for cycle in clock.parts[1 : 1 + args.cycles]) for name in clock.parts[1]
    }
    train_s = sum(seconds for name, seconds in parts.items() if name != "sample and score")
    return {
        "seconds": _between(clock.cycle_ends),
        "parts": parts,
        "mfu": NUM_ITERATIONS * step_flops(policy.model, rollout) / train_s / matmul_peak(),
        "peak_mb": peak_mb(),
        "tokens": sum(len(completion.token_ids) for completion in rollout.completions),
    }


def _between(instants: list[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(instants)]


def step_flops(model: Any, rollout: Rollout) -> float:
    """Model FLOPs of one forward and backward pass: 6 per weight and token, 12 per pair of tokens that attention forms,
    layer and hidden unit; the head sees completion tokens only."""
    head = model.get_output_embeddings().weight
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    width = model.config.num_hidden_layers * model.config.hidden_size
    total = 0.0
    for group in rollout.groups:
        prompt = len(group.prompt.token_ids)
        lengths = [len(completion.token_ids) for completion in group.completions]
        pairs = prompt * (prompt + 1) / 2 + sum(prompt * t + t * (t + 1) / 2 for t in lengths)
        total += 6 * layers * (prompt + sum(lengths)) + 12 * width * pairs + 6 * head.numel() * sum(lengths)
    return total


def matmul_peak() -> float:
    """FLOPs per second of the best of a few large matrix products."""
    best, dtype = 0.0, torch.bfloat16 if HAS_GPU else torch.float32
    for size in (8192, 16384) if HAS_GPU else (512, 1024, 2048):
        a = torch.randn(size, size, dtype=dtype, device="cuda" if HAS_GPU else "cpu")
        for _ in range(5):
            started = now()
            a @ a
            best = max(best, 2 * size**3 / (now() - started))
    return best


def trl_trainer(args: argparse.Namespace, root: str, prompts: list[str], prompts_per_pass: int) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class CycleEnds(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.instants: list[float] = []

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % NUM_ITERATIONS == 0:
                self.instants.append(now())

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [reward_of(text) for text in completions]

    config = GRPOConfig(
        output_dir=root,
        max_steps=NUM_ITERATIONS * (1 + args.cycles),
        per_device_train_batch_size=prompts_per_pass * args.n,
        gradient_accumulation_steps=args.prompts // prompts_per_pass,
        num_generations=args.n,
        num_iterations=NUM_ITERATIONS,
        max_completion_length=args.max_new_tokens,
        temperature=1.0,
        top_k=0,
        beta=KL_COEF,
        loss_type="grpo",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=HAS_GPU,
        use_cpu=not HAS_GPU,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_vllm=args.vllm,
        vllm_mode="colocate",
    )
    ends = CycleEnds()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.policy, dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=load_tokenizer(args.policy),
        callbacks=[ends],
    )
    trainer.cycle_ends = ends.instants
    return trainer


def prompt_texts(args: argparse.Namespace, datamodule: PromptDataModule) -> list[str]:
    """Our prompts as text that TRL reads as the same tokens."""
    datamodule.setup("fit")
    _, prompts = datamodule.rollout_prompts(0)
    texts = [datamodule.tokenizer.decode(list(prompt.token_ids)) for prompt in prompts]
    assert [tuple(ids) for ids in datamodule.tokenizer(texts).input_ids] == [prompt.token_ids for prompt in prompts]
    return texts


def run_trl(args: argparse.Namespace, root: str, prompts_per_pass: int) -> dict[str, Any]:
    trainer = trl_trainer(args, root, prompt_texts(args, make_parts(args, root, "reference")[1]), prompts_per_pass)
    trainer.train()
    return {
        "seconds": _between(trainer.cycle_ends),
        "peak_mb": peak_mb(),
        "tokens": args.prompts * args.n * args.max_new_tokens,
    }


def compare_gradients(args: argparse.Namespace, root: str) -> dict[str, Any]:
    """Cosine and ratio of norms of the two gradients of the first step, on the same completions and rewards."""
    args.cycles = 0
    module, datamodule, trainer = make_parts(args, root, "reference")
    other = trl_trainer(args, root, prompt_texts(args, datamodule), args.prompts)
    engine = next(c for c in trainer.callbacks if isinstance(c, RolloutCallback)).engine  # type: ignore[attr-defined]
    sampling = Sampling(num_completions=args.n, max_new_tokens=args.max_new_tokens)
    problems, prompts = datamodule.rollout_prompts(0)
    completions = engine.generate(prompts, sampling)
    scores = TrivialReward().score(problems, [[c.text for c in group] for group in completions])
    groups = [
        Group(problem=problem, prompt=prompt, completions=group, scores=score)
        for problem, prompt, group, score in zip(problems, prompts, completions, scores, strict=True)
    ]
    device = other.accelerator.device
    batch = to_batch(groups, 2048).to(device)
    module.configure_model()
    module.trainer = trainer
    assert module.policy is not None
    module.policy.to(device)
    counts = StepCounts(
        num_prompts=args.prompts,
        num_completions=args.n,
        total_tokens=int(batch.mask_BT.sum()),
        max_tokens=args.max_new_tokens,
    )
    module._loss(batch, counts, 1.0)[0].backward()
    other.model.train()
    other.current_gradient_accumulation_steps = 1
    other._compute_loss(other.model, trl_inputs(groups, batch.rewards_PN, batch.behaviour_logprobs_BT)).backward()
    ours, theirs = flat_gradient(module.policy.model), flat_gradient(other.model)
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)),
        "norm_ratio": float(ours.norm() / theirs.norm()),
    }


def trl_inputs(groups: list[Any], rewards_PN: Tensor, behaviour_logprobs_BT: Tensor) -> dict[str, Any]:
    """What GRPOTrainer makes of completions: prompts padded on the left; it would add 1e-4 to the deviation."""
    length = max(len(group.prompt.token_ids) for group in groups)
    pairs = [(group.prompt.token_ids, completion.token_ids) for group in groups for completion in group.completions]
    prompts = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt, _ in pairs])
    masks = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt, _ in pairs])
    completions = torch.tensor([list(completion) for _, completion in pairs])
    advantages_PN = rewards_PN.float() - rewards_PN.float().mean(1, keepdim=True)
    advantages_PN = advantages_PN / rewards_PN.float().std(1, keepdim=True)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": masks,
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": advantages_PN.flatten(),
        "ref_per_token_logps": behaviour_logprobs_BT,  # the initial policy sampled
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    return {name: tensor.to(behaviour_logprobs_BT.device) for name, tensor in inputs.items()}


def flat_gradient(model: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


SIDES = {
    OURS: lambda args, root: run_ours(args, root, "reference"),
    OURS_KL_OLD: lambda args, root: run_ours(args, root, "old"),
    THEIRS: lambda args, root: run_trl(args, root, args.prompts_per_pass),
    THEIRS_AT_ONCE: lambda args, root: run_trl(args, root, args.prompts),
    "gradients": compare_gradients,
}


def in_a_process(side: str, args: argparse.Namespace, **changed: Any) -> dict[str, Any]:
    options = {**vars(args), **changed, "side": side}
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(options)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(options: dict[str, Any]) -> None:
    warnings.simplefilter("ignore")
    args = argparse.Namespace(**options)
    with tempfile.TemporaryDirectory() as root:
        print("\n" + json.dumps(SIDES[args.side](args, root)))


def measure(args: argparse.Namespace, sides: Sequence[str], **changed: Any) -> dict[str, list[dict[str, Any]]]:
    """Every side in turn, `repeats` times, on a policy of its own size."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as directory:
        if args.policy is None:
            write_policy(directory, argparse.Namespace(**{**vars(args), **changed}))
            changed["policy"] = directory
        for repeat in range(args.repeats):
            for side in sides[repeat % len(sides) :] + sides[: repeat % len(sides)]:
                results[side].append(in_a_process(side, args, **changed))
    return results


def row_of(side: str, results: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    seconds = statistics.median(s for result in results for s in result["seconds"])
    row = {
        "side": side,
        **settings,
        "seconds_per_cycle": seconds,
        "tokens_per_s": statistics.median(result["tokens"] for result in results) / seconds,
        "peak_mb": statistics.median(result["peak_mb"] for result in results),
    }
    if "parts" in results[0]:
        row["parts"] = {
            name: statistics.median(result["parts"][name] for result in results) for name in results[0]["parts"]
        }
        row["mfu"] = statistics.median(result["mfu"] for result in results)
    return row


def speed(results: dict[str, list[dict[str, Any]]], ours: str) -> float:
    """Median over repeats of the ratio inside one repeat, so that a change of load hits both sides.

    Of the ways in which TRL was run, the one that is faster counts.
    """
    ratios = []
    for theirs in (THEIRS, THEIRS_AT_ONCE):
        pairs = zip(results.get(theirs, []), results[ours], strict=theirs in results)
        ratios.append([statistics.median(t["seconds"]) / statistics.median(o["seconds"]) for t, o in pairs])
    return min(statistics.median(of_one_way) for of_one_way in ratios if of_one_way)


def grow(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One setting changed at a time."""
    rows, ratios = [], {}
    for name, values in GROWTH.items():
        for value in values:
            results = measure(args, [OURS, THEIRS], **{name: value})
            rows += [row_of(side, results[side], **{name: value}) for side in results]
            ratios[f"speed_vs_trl/{name}={value}"] = speed(results, OURS)
            seconds = ", ".join(f"{row['side']} {row['seconds_per_cycle']:.2f} s" for row in rows[-2:])
            ratio, mfu = ratios[f"speed_vs_trl/{name}={value}"], rows[-2]["mfu"]
            print(f"{name} {value}: {seconds}, speed_vs_trl {ratio:.2f}, train_mfu {mfu:.2f}", flush=True)
    return rows, ratios


def compare(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All sides in turn, and their gradients."""
    ways = [THEIRS, THEIRS_AT_ONCE] if args.trl_at_once and args.prompts_per_pass < args.prompts else [THEIRS]
    results = measure(args, [OURS, OURS_KL_OLD, *ways])
    gradients = measure(argparse.Namespace(**{**vars(args), "repeats": 1}), ["gradients"])["gradients"][0]
    rows = [row_of(side, results[side]) for side in results]
    table = Table(title=f"{args.prompts} prompts x {args.n} completions x {args.max_new_tokens} tokens")
    for heading in ("side", "s / cycle", "tokens / s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for row in rows:
        numbers = (f"{row['seconds_per_cycle']:.2f}", f"{row['tokens_per_s']:.0f}", f"{row['peak_mb']:.0f}")
        table.add_row(row["side"], *numbers)
    console = Console()
    console.print(table)
    parts = rows[0]["parts"]
    for name, seconds in parts.items():
        console.print(f"  {name}: {seconds:.2f} s, {seconds / sum(parts.values()):.0%} of our cycle")
    ratios = {
        "speed_vs_trl": speed(results, OURS),
        "speed_vs_trl_kl_old": speed(results, OURS_KL_OLD),
        "train_mfu": rows[0]["mfu"],
        "train_mfu_kl_old": rows[1]["mfu"],
        "gradient_cosine": gradients["cosine"],
        "gradient_norm_ratio": gradients["norm_ratio"],
    }
    for name, value in ratios.items():
        console.print(f"{name}: {value:.4f}")
    return rows, ratios


def machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if HAS_GPU else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=None, help="write machine, rows and ratios there")
    parser.add_argument("--policy", default=None, help="a directory or hub name; none: a random model")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt_tokens", type=int, default=512, help="of a prompt, at most")
    parser.add_argument("--prompts_per_pass", type=int, default=1, help="of a forward and backward pass, on both sides")
    parser.add_argument("--trl_at_once", action=argparse.BooleanOptionalAction, default=True, help=THEIRS_AT_ONCE)
    parser.add_argument("--n", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--cycles", type=int, default=1, help="counted cycles per process")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", action="store_true", help="both sides sample with vLLM (colocated)")
    parser.add_argument("--growth", action="store_true", help="change one size at a time instead, TRL at equal passes")
    parser.add_argument("--model_options", default="{}", help="JSON, more arguments of our PolicyModule")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(json.loads(args.child))
        return
    rows, ratios = grow(args) if args.growth else compare(args)
    if args.json is not None:
        report = {"machine": machine(), "rows": rows, "ratios": ratios}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
