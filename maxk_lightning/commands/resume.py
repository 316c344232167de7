"""`fit --ckpt_path`: the run's own configuration comes before YAML files, options on the command line before both."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maxk_lightning.checkpoints import Configuration, check_checkpoint, read_configurations
from maxk_lightning.commands.configurations import changes, flat

CLASS_OF_OPTIMIZER = "model.optimizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """How a run is resumed."""

    args: list[str]
    "Arguments of `fit` that say so in full."
    remarks: list[str]
    "What the user is to know."


def resume(args: Sequence[str], asked: Mapping[str, Any], dump: Callable[[list[str]], str]) -> Resume | None:
    """Arguments that continue a run as it was begun; None: Lightning alone can find the checkpoint.

    Args:
        args: Of the command line, `fit` first.
        asked: What they say, with YAML files over defaults; its `ckpt_path` is not None.
        dump: Arguments -> YAML of what they say.

    Raises:
        ValueError: the checkpoint is none, or the optimizer is of another class.
    """
    ckpt_path, root = asked["ckpt_path"], Path(asked["trainer"]["default_root_dir"])
    checkpoint = _find(ckpt_path, root)
    if checkpoint is None:
        if ckpt_path != "last":
            return None
        remark = f"ckpt_path is last, but {root}/checkpoints holds no checkpoint: the run starts afresh"
        return Resume(args=[*args, "--ckpt_path=null"], remarks=[remark])
    own = _own(checkpoint)
    if own is None:
        remark = f"{checkpoint} does not hold its configuration: give all options of the run again"
        return Resume(args=list(args), remarks=[remark])
    rest = without_config_files(args[1:])
    place = [f"--trainer.default_root_dir={root}"] if ckpt_path == "last" else []
    full = [args[0], f"--config={own.text}", *rest, f"--ckpt_path={ckpt_path}", *place]
    before, after = yaml.safe_load(own.text), yaml.safe_load(dump(full))
    _check_optimizer(before, after)
    remarks = [f"resuming {checkpoint} with its own configuration"]
    remarks += [f"from here on {each.key} is {each.after} (was {each.before})" for each in changes(before, after)]
    remarks += _unused(args, asked, after)
    return Resume(args=full, remarks=remarks)


def without_config_files(args: Sequence[str]) -> list[str]:
    """The options alone.

    >>> without_config_files(["--config", "a.yaml", "--config=b.yaml", "--model.kl_coef", "0"])
    ['--model.kl_coef', '0']
    """
    kept, is_file = [], False
    for arg in args:
        if not is_file and not arg.startswith(("--config=", "-c=")) and arg not in ("--config", "-c"):
            kept.append(arg)
        is_file = not is_file and arg in ("--config", "-c")
    return kept


def _find(ckpt_path: str, root: Path) -> Path | None:
    """The checkpoint on this machine that Lightning will load; None: there is none, or only Lightning can find it."""
    if ckpt_path != "last":
        check_checkpoint(ckpt_path)
        return Path(ckpt_path) if Path(ckpt_path).exists() else None
    found = (root / "checkpoints").glob("last*.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _own(checkpoint: Path) -> Configuration | None:
    """The last configuration that a checkpoint was trained with; None: it was written before there were any."""
    try:
        return next(reversed(read_configurations(checkpoint)), None)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"ckpt_path: {checkpoint} cannot be read ({error})") from error


def _check_optimizer(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    old, new = flat(before).get(CLASS_OF_OPTIMIZER), flat(after).get(CLASS_OF_OPTIMIZER)
    if old != new:
        raise ValueError(
            f"model.optimizer is {new}: the checkpoint holds the states of {old}, which it cannot continue from"
        )


def _unused(args: Sequence[str], asked: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """What YAML files say and the run's own configuration overrides."""
    in_files: dict[str, Any] = {}
    words = list(args)
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in ("--config", "-c") or word.startswith(("--config=", "-c=")):
            path = Path(value if word in ("--config", "-c") else word.partition("=")[2])
            in_files |= flat(yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {})
    return [
        f"{each.key} stays {each.after}: --config says {each.before}, which only an option --{each.key} can change"
        for each in changes(asked, used)
        if each.key in in_files
    ]
