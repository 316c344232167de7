"""Single completions of vLLM servers: what a server is asked, and what it answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maxk_lightning.policy import load_stop_tokens, load_tokenizer
from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.text import answer_text
from maxk_lightning.rollouts.engines.vllm.errors import finish_reason
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, Prompt, Sampling, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "v1/completions"
LABELLED = "inference/v1/generate"
"The route that also says which weights sampled which tokens."
ROUTES = (PLAIN, LABELLED)


class Asker:
    """Asks servers for completions of a policy."""

    def __init__(self, policy: str, *, is_labelled: bool) -> None:
        """Prepare; the policy's tokenizer is read by `prepare`.

        Args:
            policy: Directory or name.
            is_labelled: Whether to ask which weights sampled which tokens.
        """
        self.policy = policy
        self.is_labelled = is_labelled
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._stop_tokens: list[int] = []

    def prepare(self) -> None:
        """Read tokenizer and stop tokens from disk, once."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.policy)
            self._stop_tokens = sorted(load_stop_tokens(self.policy, self._tokenizer))

    def ask(self, server: Server, prompt: Prompt, sample: int, sampling: Sampling, run: str | None) -> Completion:
        """Ask a server for one completion.

        Args:
            server: Server that samples it.
            prompt: Prompt that it continues.
            sample: Its number in its group.
            sampling: How it is drawn.
            run: Name of the run in the labels of weights; None: no weights were pushed to the server.

        Raises:
            ValueError: the server refuses.
            EngineError: the server failed, or has other weights than those it was given.
        """
        assert self._tokenizer is not None
        parameters = self._parameters(prompt, sample, sampling)
        segments: tuple[Segment, ...] = ()
        if self.is_labelled:
            asked: dict[str, Any] = {"token_ids": list(prompt.token_ids), "sampling_params": parameters}
            choice = server.post(LABELLED, asked)["choices"][0]
            logprobs = [position["logprob"] for position in choice["logprobs"]["content"]]
            if run is not None:
                segments = _segments(choice["weight_versions"], run, server)
        else:
            asked = {"prompt": list(prompt.token_ids), "return_token_ids": True, **parameters}
            choice = server.post(PLAIN, asked)["choices"][0]
            logprobs = choice["logprobs"]["token_logprobs"]
        return Completion(
            token_ids=tuple(choice["token_ids"]),
            logprobs=tuple(logprobs),
            entropies=None,
            text=answer_text(self._tokenizer, prompt, choice["token_ids"]),
            finish_reason=finish_reason(choice["finish_reason"]),
            segments=segments,
        )

    def _parameters(self, prompt: Prompt, sample: int, sampling: Sampling) -> dict[str, Any]:
        return {
            "n": 1,
            "seed": derive_seed(prompt.seed, sample),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": self._stop_tokens,
            "stop": list(sampling.stop),
            "logprobs": 0,
        }


def label_of(version: int, run: str) -> str:
    """Make the server's name for the weights of a version."""
    return f"{version}-{run}"


def _segments(spans: Sequence[dict[str, Any]] | None, run: str, server: Server) -> tuple[Segment, ...]:
    """The versions behind the labels of the spans that vLLM reports."""
    segments = []
    for span in spans or ():
        version, _, of_run = span["version"].partition("-")
        if of_run != run:  # it was restarted
            raise EngineError(f"the vLLM server at {server.url} has other weights than it was given")
        segments.append(Segment(span["start"], int(version)))
    return tuple(segments)
