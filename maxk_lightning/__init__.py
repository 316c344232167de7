"""Reinforcement learning of language models for Best-of-N.

Kept almost empty, so that sandbox workers and `--help` start fast.
"""

__version__ = "0.1.0"
