"""The seam between training and whatever samples completions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from maxk_lightning.types import Completion, Prompt, Sampling

# jsonargparse wants annotations that a user's class may write in another way or leave out; see `rewards.reward`.
if TYPE_CHECKING:
    Prompts = Sequence[Prompt]
    Groups = list[list[Completion]]
    NamedTensors = Iterable[tuple[str, Tensor]]
else:
    Prompts = Groups = NamedTensors = Any


Arrival = TypeVar("Arrival")


class EngineError(RuntimeError):
    """A rollout engine failed; a fresh one may work."""


def in_groups(
    arrivals: Iterable[tuple[int, int, Arrival]], num_prompts: int, num_completions: int
) -> list[list[Arrival]]:
    """What a stream told in the order it ended, as groups: one list per prompt, samples in order."""
    arrived = {(index, sample): arrival for index, sample, arrival in arrivals}
    return [[arrived[index, sample] for sample in range(num_completions)] for index in range(num_prompts)]


class RolloutEngine(Protocol):
    """Samples completions from the last weights it was given. Parameters must have these names."""

    def generate(self, prompts: Prompts, sampling: Sampling) -> Groups:
        """Sample `sampling.num_completions` completions per prompt, in order, with their behaviour log-probs."""
        ...

    def load_weights(self, named_tensors: NamedTensors, version: int) -> None:
        """Take over a full set of weights under Hugging Face names; `version` counts optimizer steps."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that hands completions out as they end."""

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int, Completion]]:
        """What `generate` returns, in the order it ends: (index of the prompt, sample in its group, completion)."""
        ...


@runtime_checkable
class ManagedEngine(Protocol):
    """An engine with memory or processes of its own."""

    def sleep(self) -> bool:
        """Free memory while the policy is trained; True: weights must be loaded before the next sample."""
        ...

    def close(self) -> None:
        """Free everything; the next use starts afresh. Does nothing when nothing runs."""
        ...
