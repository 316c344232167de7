"""Checkpoint directories, in which every rank wrote its share: replace them safely, read them on one process."""

import importlib
import os
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.serialization import get_unsafe_globals_in_checkpoint

METADATA = "meta.pt"
"Lightning's file for everything but weights and optimizer states."
CHECKPOINT_WORDS = ("last", "best", "hpc")
"What `ckpt_path` may say instead of a path."


class CheckpointMismatchError(ValueError):
    """A checkpoint was written by a run whose model was another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A configuration that a run was trained with."""

    step: int
    "Optimizer step from which on."
    text: str
    "YAML of `fit`, every key in it."


def read_configurations(path: Path) -> list[Configuration]:
    """The configurations that the weights of a checkpoint were trained with, the first one first; no tensor is read."""
    file = path / METADATA if path.is_dir() else path
    # Optimizer states of torchao are classes of its own; everything here is tensors and plain values.
    if any(name.startswith("torchao.") for name in get_unsafe_globals_in_checkpoint(file)):
        importlib.import_module("torchao.optim")  # declares them safe to load
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return [Configuration(**each) for each in checkpoint.get("configurations", [])]


def replace_checkpoint(part: Path, target: Path) -> None:
    """Rename `part` to `target`, replacing what was there, file or directory.

    Directories cannot be exchanged portably in one step, so for a moment the previous checkpoint is called
    `X-replaced.ckpt`: `--ckpt_path last` finds `last-replaced.ckpt` too and takes the newest.
    """
    replaced = target.with_name(f"{target.stem}-replaced{target.suffix}")
    if target.exists():
        discard(replaced)
        target.rename(replaced)
    part.rename(target)
    discard(replaced)
    _sync_directory(target.parent)


def discard(path: Path) -> None:
    """Delete a checkpoint under another name: what a kill leaves of it must not look like a checkpoint."""
    trash = path.with_name(f"{path.name}.part")
    shutil.rmtree(trash, ignore_errors=True)
    if path.is_dir():
        path.rename(trash)
        shutil.rmtree(trash)
    else:
        path.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_sharded(path: Path) -> bool:
    """Whether a path is a whole checkpoint directory."""
    return path.is_dir() and (path / METADATA).is_file() and (path / ".metadata").is_file()


def check_policy(written: str, policy: str) -> None:
    """Compare the policy that a checkpoint was written for with that of this run: its tokenizer must be the same.

    Directories may have moved, so of those that differ a warning tells.

    Raises:
        CheckpointMismatchError: they are two names, built in or of the hub, and differ.
    """
    if written == policy:
        return
    if _is_name(written) and _is_name(policy):
        raise CheckpointMismatchError(f"model.policy is {policy}, but the checkpoint was written with {written}")
    warnings.warn(
        f"model.policy is {policy}, the checkpoint was written with {written}: tokenizer and chat template must be the "
        "same",
        stacklevel=2,
    )


def _is_name(policy: str) -> bool:
    return not Path(policy).is_dir() and not policy.startswith(("/", ".", "~")) and policy.count("/") <= 1


def check_checkpoint(path: str | None) -> None:
    """ValueError where Lightning's `ckpt_path` names something on this machine that does not look like a checkpoint."""
    if path == "best":
        raise ValueError(
            "ckpt_path is best, which Lightning knows only after a `fit` of the same process: give the file"
        )
    if path is None or path in CHECKPOINT_WORDS or "://" in path:
        return
    if not Path(path).exists():
        raise ValueError(f"ckpt_path is {path}: no such file or directory")
    if not (is_sharded(Path(path)) or zipfile.is_zipfile(path)):
        raise ValueError(f"ckpt_path is {path}, which is no checkpoint")


def read_sharded(path: Path, prefix: str = "") -> dict[str, Any]:
    """Read a checkpoint directory as what a single process would have written; needs no process group.

    Only entries whose name starts with `prefix` are read: `state_dict.` leaves the optimizer's states on disk.
    """
    checkpoint: dict[str, Any] = torch.load(path / METADATA, map_location="cpu", weights_only=True)
    metadata = FileSystemReader(path).read_metadata()
    state: dict[str, Any] = {
        name: _empty(entry) for name, entry in metadata.state_dict_metadata.items() if name.startswith(prefix)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
        load(state, checkpoint_id=path, no_dist=True)
    nested: dict[Any, Any] = {}
    for name, value in state.items():
        *parents, last = metadata.planner_data[name]
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    nested = _with_lists(nested)
    optimizers = [nested[name] for name in sorted(nested) if name.startswith("optimizer_")]
    if optimizers:
        checkpoint["optimizer_states"] = [_by_index(optimizer) for optimizer in optimizers]
    return checkpoint | {"state_dict": nested["state_dict"]}


def _empty(entry: Any) -> Tensor | None:
    return torch.empty(entry.size, dtype=entry.properties.dtype) if isinstance(entry, TensorStorageMetadata) else None


def _with_lists(value: Any) -> Any:
    """Lists again where torch wrote their places as keys."""
    if not isinstance(value, dict):
        return value
    children = {key: _with_lists(child) for key, child in value.items()}
    is_list = bool(children) and all(isinstance(key, int) for key in children)
    return [children[key] for key in sorted(children)] if is_list else children


def _by_index(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Optimizer states under the numbers of the parameters, as `torch.optim` writes them, instead of their names."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    index = {name: number for number, name in enumerate(names)}
    return {
        "state": {index[name]: state for name, state in optimizer["state"].items()},
        "param_groups": [
            group | {"params": [index[name] for name in group["params"]]} for group in optimizer["param_groups"]
        ],
    }
