"""The seam between training and whatever samples completions."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from maxk_lightning.types import Completion, Prompt, Sampling


class RolloutEngine(Protocol):
    """Samples completions from the last weights it was given."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Sample `sampling.num_completions` completions per prompt, in order, with their behaviour log-probs."""
        ...

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over a full set of weights under Hugging Face names; `version` counts optimizer steps."""
        ...
