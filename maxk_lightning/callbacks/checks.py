"""What cannot work together, refused before anything expensive starts."""

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from maxk_lightning.callbacks.checkpoint import RolloutCheckpoint
from maxk_lightning.data import PromptTemplate
from maxk_lightning.objectives import Objective, ToldK, needs_behaviours, parts_of
from maxk_lightning.policy.processor import tell_of_slow_bfloat16
from maxk_lightning.rewards import Reward, gives_behaviours
from maxk_lightning.rollouts import RolloutEngine, TransformersEngine, VLLMEngine
from maxk_lightning.strategy import FSDP2Strategy
from maxk_lightning.types import Sampling


def check_options(
    engine: RolloutEngine, sampling: Sampling, rollouts_ahead: int, max_age: int | None, max_logprob_gap: float
) -> None:
    """Refuse options of `RolloutCallback` that are out of range or exclude each other.

    Raises:
        ValueError: naming the option.
    """
    if sampling.top_p != 1.0:
        raise ValueError(
            f"rollout.sampling.top_p is {sampling.top_p}: training needs 1.0, because log-probs of a truncated "
            "distribution are not those of the policy being trained"
        )
    if rollouts_ahead < 0:
        raise ValueError(f"rollout.rollouts_ahead is {rollouts_ahead}, must be 0 or more")
    if max_age is not None and (max_age < 1 or not rollouts_ahead):
        raise ValueError(f"rollout.max_age is {max_age}, must be positive, with rollout.rollouts_ahead above 0")
    if not max_logprob_gap > 0.0:
        raise ValueError(f"rollout.max_logprob_gap is {max_logprob_gap}, must be positive")
    if getattr(engine, "in_flight_weight_updates", False) and not rollouts_ahead:
        raise ValueError(
            "rollout.engine.in_flight_weight_updates has no effect without rollout.rollouts_ahead: no rollout is "
            "sampled while the policy is trained"
        )
    if rollouts_ahead and getattr(engine, "sleep_while_training", False):
        raise ValueError("rollout.engine.sleep_while_training: with rollouts_ahead the engine works meanwhile")
    if rollouts_ahead and getattr(engine, "tensor_parallel_size", 1) > 1:
        raise ValueError(
            "rollout.engine.tensor_parallel_size: with rollouts_ahead the collectives of engine and training would "
            "meet on the same GPUs in another order on every rank, and hang"
        )


def check_trainer(trainer: Trainer) -> None:
    """Refuse Trainer flags that would do nothing or the wrong thing here, and warn of one that is slow.

    Raises:
        ValueError: naming the flag, and what to set instead.
    """
    if trainer.gradient_clip_val:
        raise ValueError("trainer.gradient_clip_val: set model.max_grad_norm instead")
    if trainer.accumulate_grad_batches != 1:
        raise ValueError("trainer.accumulate_grad_batches: set model.prompts_per_micro_batch instead")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):
        raise ValueError(f"trainer.strategy: {type(trainer.strategy).__name__} is not supported; take ddp or fsdp2")
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision is {trainer.precision}, must be 32-true or bf16-mixed: weights and optimizer stay in "
            "float32, because half precision rounds away updates as small as a learning rate of 5e-6 makes them"
        )
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu":
        tell_of_slow_bfloat16("trainer.precision: bf16-mixed", "32-true")


def check_attention(attn_implementation: str | None, device: torch.device) -> None:
    """Refuse attention that torch cannot train with on this device.

    Raises:
        ValueError: `flex_attention` on a CPU.
    """
    if attn_implementation == "flex_attention" and device.type == "cpu":
        raise ValueError("model.attn_implementation: flex_attention has gradients on a GPU only; leave it to null here")


def check_overlap(engine: RolloutEngine, device: torch.device) -> None:
    """Refuse to sample ahead on the GPU that trains.

    Both would give their kernels to the same stream: a token waits for a whole micro-batch, so that most of the rollout
    is sampled after the training, from older weights, in memory that could not be given back.

    Raises:
        ValueError: the engine is in this process and on that GPU.
    """
    is_here = isinstance(engine, VLLMEngine) or (isinstance(engine, TransformersEngine) and engine.device != "cpu")
    if device.type == "cuda" and is_here:
        raise ValueError(
            f"rollout.rollouts_ahead: {type(engine).__name__} samples on the GPU that trains, where both wait for each "
            "other and nothing is gained; set it to 0, or take VLLMServerEngine with GPUs of its own"
        )


def check_behaviours(objective: Objective, reward: Reward) -> None:
    """Refuse an objective that counts behaviours where the reward gives none.

    Raises:
        ValueError: naming both.
    """
    if needs_behaviours(objective) and not gives_behaviours(reward):
        raise ValueError(
            f"model.objective: {type(objective).__name__} counts behaviours, which the reward "
            f"({type(reward).__name__}) does not give; UnitTestReward does, and a class of your own whose scores have "
            "a `behaviour` and that has the attribute gives_behaviours = True"
        )


def check_checkpoints(trainer: Trainer) -> None:
    """Refuse checkpoints that would not be written as they are asked for.

    Raises:
        ValueError: naming the key.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RolloutCheckpoint):
            callback.check()


def check_told(objective: Objective, template: PromptTemplate) -> None:
    """Refuse a `ToldK` whose template has no `{k}`, or has one although `tells` is False.

    Raises:
        ValueError: naming the template.
    """
    for part in parts_of(objective):
        if isinstance(part, ToldK) and part.tells != template.tells_k:
            needed = "needs {k} in `user` or `system`" if part.tells else "must hold no {k}"
            raise ValueError(f"data.template {needed}: objectives.ToldK(tells={part.tells})")
