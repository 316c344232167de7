"""What users give as `--policy`, as a directory that engines load: a checkpoint exported, an adapter merged."""

import shutil
from pathlib import Path

from maxk_lightning.commands.export import export
from maxk_lightning.evaluation.origin import TRAINING
from maxk_lightning.policy.adapter import is_adapter_directory, write_merged


def is_loadable(policy: str) -> bool:
    """Tell whether engines load a policy as it is."""
    return not policy.endswith(".ckpt") and not is_adapter_directory(policy)


def loadable(policy: str, directory: Path) -> str:
    """Name a directory or hub name that engines load; `directory` is written, anew, where the policy is none.

    Raises:
        ValueError: a checkpoint or an adapter cannot be read.
    """
    if is_loadable(policy):
        return policy
    shutil.rmtree(directory, ignore_errors=True)  # the file may hold other weights than the last time
    if policy.endswith(".ckpt"):
        export(policy, str(directory))
        return str(directory)
    write_merged(policy, str(directory))
    training = Path(policy) / TRAINING
    if training.is_file():
        shutil.copy(training, directory)
    return str(directory)
