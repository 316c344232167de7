"""Tokens -> text, the same in every engine: the answer of a completion, and where a stop string ends it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maxk_lightning.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_text(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, token_ids: Sequence[int]) -> str:
    """Return the text of a completion: the prompt's prefill, then what the tokens add to it.

    After a prefill tokens are decoded together with the prompt: some tokenizers drop a blank at the start of a text.
    """
    if not prompt.prefill:
        return _decode(tokenizer, token_ids)
    before = _decode(tokenizer, prompt.token_ids)
    return prompt.prefill + _decode(tokenizer, [*prompt.token_ids, *token_ids])[len(before) :]


class StopStrings:
    """Finds stop strings in completions that grow token by token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._special = set(tokenizer.all_special_ids)
        # A token that is not special is at least one byte; one more, because a blank may be lost at the start.
        self._window = 1 + max((len(text.encode()) for text in self._stop), default=0)

    def end(self, token_ids: Sequence[int]) -> bool:
        """Whether the last tokens hold a stop string: asked after every token, whether the last one completes it."""
        tail = [token for token in token_ids if token not in self._special][-self._window :]
        text = _decode(self._tokenizer, tail)
        return any(stop in text for stop in self._stop)


def _decode(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text
