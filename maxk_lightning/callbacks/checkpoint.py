"""Checkpoints that are either whole or absent."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a process killed at any moment leaves the previous checkpoint whole.

    Lightning's own writer goes through a temporary file that may lie on another file system, where the final move is
    a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save to `path`; `storage_options` are not supported."""
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load to host memory, whatever `map_location`.

        Lightning's default is a function, under which torch does not rebuild tensors such as 8-bit optimizer states.
        """
        checkpoint: dict[str, Any] = super().load_checkpoint(path, "cpu", weights_only)  # type: ignore[arg-type]
        return checkpoint
