"""The command line of a plain command is its function's signature."""

import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from maxk_lightning.records import check_regular_file

RUN_KEYS = ("data", "rollout", "seed_everything")
"Top-level keys of a run's YAML that commands with `overrides` let the command line change."


def call(function: Callable[..., None], args: Sequence[str]) -> None:
    """Parse `args` and call the function.

    Parameters become `--name value`, `*names` one or more words, and `overrides` collects every `--data.key value`,
    `--rollout.key value` and `--seed_everything value`, and every `--config` but the first, to be laid over the YAML of
    a run.
    """
    parameters = inspect.signature(function).parameters
    words = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL]
    parser = ArgumentParser(
        prog=f"python -m maxk_lightning {function.__name__}",
        description=inspect.cleandoc(function.__doc__ or "").split("\n\n")[0],
        allow_abbrev=False,
    )
    for name in words:
        described = re.search(rf"^ +{name}: (.*)$", function.__doc__ or "", re.MULTILINE)
        parser.add_argument(name, nargs="+", help=described and described[1])
    if "policy" in parameters:  # the YAML calls it so
        args = [re.sub(r"^--model\.policy(?=$|=)", "--policy", arg) for arg in args]
    overrides: list[str] = []
    if "overrides" in parameters:
        parser.epilog = f"Also every --{', --'.join(RUN_KEYS)} key of `fit --help`, over the value in the YAML."
        args, overrides = split_overrides(args)
        check_config_files(overrides)
    parser.add_function_arguments(function, skip={*words, "overrides"}, sub_configs=True)
    parsed: dict[str, Any] = parser.instantiate(parser.parse_args(list(args))).as_dict()
    values = [value for name in words for value in parsed.pop(name)]
    if "overrides" in parameters:
        parsed["overrides"] = overrides
    function(*values, **parsed)


def check_config_files(args: Sequence[str]) -> None:
    """ValueError with file and reason for a `--config` that cannot be one: jsonargparse often names neither.

    >>> check_config_files(["--out", "x"])
    """
    following = [value for word, value in itertools.pairwise(args) if word == "--config"]
    for path in (*following, *(word.removeprefix("--config=") for word in args if word.startswith("--config="))):
        try:
            check_regular_file(Path(path))
            config = yaml.safe_load(Path(path).read_bytes().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"--config: {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        except yaml.YAMLError as error:
            raise ValueError(f"--config: {path}: not YAML ({' '.join(str(error).split())})") from error
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{path}: nested too deep"
            raise ValueError(f"--config: {reason}") from error
        except OSError as error:
            raise ValueError(f"--config: {path}: {error.strerror}") from error
        if not isinstance(config, dict):
            what = "empty" if config is None else f"a {type(config).__name__}"
            raise ValueError(f"--config: {path} is {what}, must hold keys and their values")


def check_counts(**counts: int) -> None:
    """Raise ValueError naming an option that is less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name} is {count}, must be at least 1")


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command's own arguments from those for the YAML of a run, further YAMLs laid over the first included.

    >>> split_overrides(["--out", "x", "--data.seed", "1", "--rollout.engine=E"])
    (['--out', 'x'], ['--data.seed', '1', '--rollout.engine=E'])
    >>> split_overrides(["--config", "a.yaml", "--config", "b.yaml", "--out", "x"])
    (['--config', 'a.yaml', '--out', 'x'], ['--config', 'b.yaml'])
    """
    own: list[str] = []
    overrides: list[str] = []
    target, has_config = own, False
    for arg in args:
        if arg.startswith("--"):
            key = arg[2:].split("=")[0]
            target = overrides if key.split(".")[0] in RUN_KEYS or (key == "config" and has_config) else own
            has_config = has_config or key == "config"
        target.append(arg)
    return own, overrides
