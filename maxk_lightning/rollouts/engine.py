"""The interface between training and the engines that sample completions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from maxk_lightning.policy.memory import EngineMemory
from maxk_lightning.types import Completion, Prompt, Sampling

# See `rewards.reward`.
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
    """Sort streamed completions back into groups: one list per prompt, samples in order."""
    arrived = {(index, sample): arrival for index, sample, arrival in arrivals}
    return [[arrived[index, sample] for sample in range(num_completions)] for index in range(num_prompts)]


class RolloutEngine(Protocol):
    """Samples completions from the weights that it was given last. Parameters must have these names."""

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
        """Yield what `generate` returns as it ends: (index of the prompt, sample in its group, completion)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of an engine has sampled."""

    name: str
    "Name of the part, for messages."
    prompts: Sequence[Prompt]
    "Prompts that it was given."
    groups: Sequence[Sequence[Completion]]
    "Its completions, by prompt."


@runtime_checkable
class ComposedEngine(Protocol):
    """An engine of parts with weights of their own, each of which must prove that it has the policy's."""

    def sample_each(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Part]:
        """Sample with every part that answers: one completion for each of some of the prompts, at least one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What the rollouts of one rank need from its engine."""

    num_completions: int
    "Completions of a rollout."
    max_tokens: int
    "Tokens of the longest prompt and completion together."
    gpu_bytes: int | None
    "Memory of the GPU that it shares with training; None: there is none."


@runtime_checkable
class MeasuredEngine(Protocol):
    """An engine that knows what it will need, for `fit --dry_run true`."""

    def memory(self, load: EngineLoad) -> EngineMemory | None:
        """Estimate the memory that it will hold beside the policy; None: it has GPUs of its own."""
        ...


@runtime_checkable
class ManagedEngine(Protocol):
    """An engine with memory or processes of its own.

    It may have three boolean attributes. `sleep_while_training`: it cannot be combined with `rollout.rollouts_ahead`.
    `runs_apart`: it samples on processors of its own, and training does not wait for it. `in_flight_weight_updates`: it
    is given the weights of every optimizer step, also while another thread samples with it; its completions have
    `segments`.
    """

    def sleep(self) -> bool:
        """Free memory while the policy is trained; True: weights must be loaded before the next sample."""
        ...

    def close(self) -> None:
        """Free everything; the next use starts afresh. Does nothing when nothing runs."""
        ...
