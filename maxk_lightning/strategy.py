"""`--trainer.strategy fsdp2`: Lightning's ModelParallelStrategy with sizes, precision and checkpoints settled."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from maxk_lightning.checkpoints import METADATA, discard, replace_checkpoint
from maxk_lightning.policy.sharding import sharded_modules


class ShardedMixedPrecision(Precision):
    """bf16-mixed under FSDP2: bfloat16 is what is gathered and computed with, so there is nothing left to autocast."""

    precision = "bf16-mixed"


class FSDP2Strategy(ModelParallelStrategy):
    """Shards the policy over all ranks of all nodes.

    `PolicyModule.configure_model` does the sharding. `trainer.precision: bf16-mixed` keeps weights, gradients and
    optimizer in float32 and computes in bfloat16.
    """

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = True,
        reduce_every_micro_batch: bool = False,
        timeout_s: float = 3600,
        process_group_backend: str | None = None,
    ) -> None:
        """Choose how ranks work together.

        Args:
            tensor_parallel_size: Only 1.
            save_distributed_checkpoint: Checkpoints are directories to which every rank writes its share; false: rank 0
                gathers everything and writes one file.
            reduce_every_micro_batch: Gradients are summed over ranks after each micro-batch, not once per step: more
                communication, and each rank never holds more than its share (4 bytes per parameter otherwise).
            timeout_s: How long a rank waits for the others, whose completions may take longer to sample and score.
            process_group_backend: None: nccl on GPUs, gloo on CPU.

        Raises:
            ValueError: `tensor_parallel_size` is not 1.
        """
        if tensor_parallel_size != 1:
            raise ValueError(
                f"trainer.strategy.tensor_parallel_size is {tensor_parallel_size}, must be 1: fsdp2 shards over all "
                "ranks, each of which trains on groups of its own"
            )
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=timedelta(seconds=timeout_s),
            process_group_backend=process_group_backend,
        )
        self.reduce_every_micro_batch = reduce_every_micro_batch

    def setup_environment(self) -> None:
        """Take the sizes from the world, and bf16 out of Lightning's hands."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        precision = self.precision_plugin.precision
        if isinstance(self.precision_plugin, MixedPrecision) and precision == "bf16-mixed":
            self.precision_plugin = ShardedMixedPrecision()
        elif precision != "32-true" and not isinstance(self.precision_plugin, ShardedMixedPrecision):
            raise ValueError(f"trainer.precision is {precision}: fsdp2 takes 32-true or bf16-mixed")
        super().setup_environment()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients of this rank to itself; the first backward pass outside sums them all."""
        assert self.model is not None
        modules = [] if self.reduce_every_micro_batch else sharded_modules(self.model)
        for module in modules:
            module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for module in modules:
                module.set_requires_gradient_sync(True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside the target and swap: a run killed at any moment leaves a whole checkpoint."""
        if not self._save_distributed_checkpoint:
            # The grandparent's: Lightning would first delete a directory of that name.
            super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)
            return
        target = Path(self.broadcast(filepath))
        part = target.with_name(f"{target.name}.part")
        if self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, part, storage_options)
        self.barrier()
        if self.is_global_zero:
            with (part / METADATA).open("rb") as file:
                os.fsync(file.fileno())
            replace_checkpoint(part, target)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a sharded directory or a full file of any strategy."""
        return super().load_checkpoint(checkpoint_path, weights_only=True if weights_only is None else weights_only)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete a checkpoint, directory or file."""
        if self.is_global_zero:
            discard(Path(filepath))


def register() -> None:
    """Make `trainer.strategy: fsdp2` known to Lightning."""
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all ranks")
