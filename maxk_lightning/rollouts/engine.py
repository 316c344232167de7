"""The seam between training and whatever samples completions."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from maxk_lightning.types import Completion, Prompt, Sampling

# jsonargparse wants annotations that a user's class may write in another way or leave out; see `rewards.reward`.
if TYPE_CHECKING:
    Prompts = Sequence[Prompt]
    Groups = list[list[Completion]]
    NamedTensors = Iterable[tuple[str, Tensor]]
else:
    Prompts = Groups = NamedTensors = Any


class RolloutEngine(Protocol):
    """Samples completions from the last weights it was given. Parameters must have these names."""

    def generate(self, prompts: Prompts, sampling: Sampling) -> Groups:
        """Sample `sampling.num_completions` completions per prompt, in order, with their behaviour log-probs."""
        ...

    def load_weights(self, named_tensors: NamedTensors, version: int) -> None:
        """Take over a full set of weights under Hugging Face names; `version` counts optimizer steps."""
        ...
