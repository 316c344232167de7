"""Configurations of a run as dotted keys, and what differs between two of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_OF_THE_RUN = ("config", "ckpt_path", "weights_only", "dry_run", "validate_before_fit", "trainer.default_root_dir")
"Keys that say what a command is to do, not how the run trains."


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A key whose value differs between two configurations."""

    key: str
    "As on the command line."
    before: Any
    "Value in the first; None where it has none."
    after: Any
    "Value in the second."


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What differs between the configurations of two commands of a run.

    >>> changes({"model": {"kl_coef": 0.1, "lora": None}}, {"model": {"kl_coef": 0.2, "lora": None}})
    [Change(key='model.kl_coef', before=0.1, after=0.2)]
    """
    old, new = flat(before), flat(after)
    return [
        Change(key=key, before=old.get(key), after=new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not key.startswith(NOT_OF_THE_RUN)
    ]


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, named as on the command line: a class has the key of its object.

    >>> flat({"model": {"objective": {"class_path": "MaxAtK", "init_args": {"k": 4}}}})
    {'model.objective': 'MaxAtK', 'model.objective.k': 4}
    """
    if not isinstance(config, Mapping) or not config:
        return {prefix: config}
    values: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".lstrip(".")
        if key == "init_args" and not value:
            continue
        values |= flat(value, name)
    return values
