"""What an output was made from, kept beside it, so that nothing of it changes unnoticed between two runs."""

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from maxk_lightning.commands.whole_file import write_whole
from maxk_lightning.rewards import Reward
from maxk_lightning.rewards.functions import FunctionReward
from maxk_lightning.rewards.weighted import WeightedRewards

OURS = "maxk_lightning"
ADDRESS = re.compile(" at 0x[0-9a-f]+")
"What `repr` says of an object without one of its own, and differs from run to run."


def digest_of(parts: Iterable[object]) -> str:
    """Digest what `repr` says of each part."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(ADDRESS.sub("", repr(part)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_inputs(path: Path, digests: Mapping[str, str], done: Iterable[str], what: str) -> None:
    """Compare the inputs of what an earlier run finished with those of this run.

    Args:
        path: What `write_inputs` wrote, if it did.
        digests: Id -> digest of what this run was given.
        done: Ids that an earlier run finished.
        what: What is digested, for the message.

    Raises:
        ValueError: naming an id, it was finished with other inputs.
    """
    earlier = _read(path)
    changed = [id_ for id_ in done if id_ in digests and earlier.get(id_, digests[id_]) != digests[id_]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(f"{path}: id {changed[0]!r}{more} was finished with other {what}; choose another --out")


def write_inputs(path: Path, digests: Mapping[str, str]) -> None:
    """Remember digests by id beside those that are remembered."""
    write_whole(path, json.dumps({**_read(path), **digests}) + "\n")


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not the inputs of an earlier run; choose another --out") from error


def code_digest(reward: Reward) -> str | None:
    """Digest the source files of a user's own rewards; None: all of it is this package's, or has no source file."""
    files = sorted({file for each in _users_code(reward) if (file := _source_of(each)) is not None})
    return digest_of(file.read_bytes() for file in files) if files else None


def _users_code(reward: Reward) -> list[object]:
    """Functions and classes that decide rewards."""
    if isinstance(reward, WeightedRewards):
        return [code for part in reward.parts for code in _users_code(part.reward)]
    code: object = reward.function if isinstance(reward, FunctionReward) else type(reward)
    while isinstance(code, functools.partial):
        code = code.func
    return [code if inspect.isroutine(code) or inspect.isclass(code) else type(code)]


def _source_of(code: object) -> Path | None:
    """The file of a function or class that is not this package's."""
    if str(getattr(code, "__module__", "")).partition(".")[0] == OURS:
        return None
    try:
        file = inspect.getsourcefile(inspect.unwrap(code) if callable(code) else type(code))
    except TypeError:  # written in C
        return None
    return Path(file) if file and Path(file).is_file() else None
