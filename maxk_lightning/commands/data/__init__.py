"""`data`: what a YAML's data gives, before any GPU hour: rows kept and left out, rendered prompts, their tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal


def data(
    config: str,
    split: Literal["all", "train", "validation", "test"] = "all",
    num_prompts: int = 2,
    num_tests: int = 2,
    policy: str | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Print what was read, kept and left out and why, and a few prompts as the policy will read them, with their tests.

    Args:
        config: YAML of a run; its data, prompt template and tokenizer are used. Of several, later ones lie over earlier
            ones.
        split: One split, or all that the YAML has.
        num_prompts: Prompts shown per split, in the order in which training meets them.
        num_tests: Tests shown per prompt.
        policy: Whose tokenizer to use; default: the YAML's `model.policy`.
        overrides: Keys laid over the YAML.

    Raises:
        ValueError: a setting is wrong, or a source cannot be read.
    """
    for key, count in (("num_prompts", num_prompts), ("num_tests", num_tests)):
        if count < 0:
            raise ValueError(f"--{key} is {count}, must be at least 0")
    if not Path(config).is_file():
        raise ValueError(f"--config: {config} is not a file")
    from maxk_lightning.commands.data.show import show_data  # imports torch: `--help` must not wait for it

    args = [] if policy is None else ["--model.policy", policy]
    show_data(["--config", config, *overrides, *args], split, num_prompts, num_tests)
