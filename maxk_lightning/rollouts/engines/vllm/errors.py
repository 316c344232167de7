"""What vLLM says, in our terms: its errors and its finish reasons."""

from collections.abc import Iterator
from contextlib import contextmanager

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.types import FinishReason


@contextmanager
def as_engine_error(doing: str, *, also_values: bool = False) -> Iterator[None]:
    """Turn what vLLM raises, which has no common class, into an EngineError; our own errors pass.

    Args:
        doing: What vLLM does, for the message.
        also_values: Whether a ValueError is vLLM's, too: vLLM raises one when it lacks memory to start.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and not also_values:
            raise
        raise EngineError(f"vLLM failed while {doing}: {type(error).__name__}: {error}") from error


def finish_reason(told: str | None) -> FinishReason:
    """Map vLLM's finish reason to ours.

    Raises:
        EngineError: the request was aborted or failed.
    """
    if told == "stop":
        return "stop"
    if told == "length":
        return "length"
    raise EngineError(f"vLLM ended a completion because of: {told}")
