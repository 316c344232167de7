"""TRL's side of bench_step.py, and its gradient beside ours."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from bench_step_ours import (
    HAS_CREDIT,
    HAS_GPU,
    LEARNING_RATE,
    NUM_ITERATIONS,
    TrivialReward,
    between,
    make_parts,
    now,
    peak_mb,
    reward_of,
)
from torch import Tensor

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts.collect import collect
from maxk_lightning.training.batch import to_batch
from maxk_lightning.types import Sampling


def trl_trainer(args: argparse.Namespace, root: str, data: dict[str, list[Any]], prompts_per_pass: int) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class CycleEnds(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.instants: list[float] = []

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % NUM_ITERATIONS == 0:
                self.instants.append(now())

    def reward(completions: list[str], has_credit: list[bool], **_: Any) -> list[float]:
        return [reward_of(text) if credit else 0.0 for text, credit in zip(completions, has_credit, strict=True)]

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
        beta=args.kl_coef,
        loss_type="grpo",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=args.precision == "bf16-mixed",
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
        train_dataset=Dataset.from_dict(data),
        processing_class=load_tokenizer(args.policy),
        callbacks=[ends],
    )
    trainer.cycle_ends = ends.instants
    return trainer


def trl_data(datamodule: PromptDataModule) -> dict[str, list[Any]]:
    """Columns of TRL's data set: our prompts as text that it reads as the same tokens, and who gets credit."""
    datamodule.setup("fit")
    order = datamodule.order(0, Sampling())
    prompts = order.prompts
    texts = [datamodule.tokenizer.decode(list(prompt.token_ids)) for prompt in prompts]
    assert [tuple(ids) for ids in datamodule.tokenizer(texts).input_ids] == [prompt.token_ids for prompt in prompts]
    return {"prompt": texts, HAS_CREDIT: [problem.metadata[HAS_CREDIT] for problem in order.problems]}


def run_trl(args: argparse.Namespace, root: str, prompts_per_pass: int) -> dict[str, Any]:
    trainer = trl_trainer(args, root, trl_data(make_parts(args, root, "reference")[1]), prompts_per_pass)
    trainer.train()
    return {
        "seconds": between(trainer.cycle_ends),
        "peak_mb": peak_mb(),
        "tokens": args.prompts * args.n * args.max_new_tokens,
    }


def compare_gradients(args: argparse.Namespace, root: str) -> dict[str, Any]:
    """Cosine and ratio of norms of the two gradients of the first step, on the same completions and rewards."""
    args.cycles = 0
    module, datamodule, trainer = make_parts(args, root, "reference")
    other = trl_trainer(args, root, trl_data(datamodule), args.prompts)
    engine = next(c for c in trainer.callbacks if isinstance(c, RolloutCallback)).engine  # type: ignore[attr-defined]
    sampling = Sampling(num_completions=args.n, max_new_tokens=args.max_new_tokens)
    samples = collect(engine, TrivialReward(), datamodule.order(0, sampling)).samples
    device = other.accelerator.device
    batch = to_batch(samples.groups, 2048).to(device)
    module.configure_model()
    module.trainer = trainer
    assert module.policy is not None
    module.policy.to(device)
    module.step_loss(samples)(batch)[0].backward()
    other.model.train()
    other.current_gradient_accumulation_steps = 1
    inputs = trl_inputs(samples.groups, batch.rewards_PN, batch.behaviour_logprobs_BT)
    other._compute_loss(other.model, inputs).backward()
    ours, theirs = flat_gradient(module.policy.model), flat_gradient(other.model)
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)),
        "norm_ratio": float(ours.norm() / theirs.norm()),
    }


def trl_inputs(groups: Sequence[Any], rewards_PN: Tensor, behaviour_logprobs_BT: Tensor) -> dict[str, Any]:
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
