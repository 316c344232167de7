"""Reinforcement learning of language models for Best-of-N.

Kept almost empty, so that sandbox workers and `--help` start fast.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`best_of_n`, loaded when it is asked for."""
    if name == "best_of_n":
        from maxk_lightning.commands.best.answers import best_of_n

        return best_of_n
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
