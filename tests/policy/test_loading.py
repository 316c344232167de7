"""Tokenizers of base models."""

from pathlib import Path

import pytest

from maxk_lightning.policy import load_tokenizer
from tests.support.architectures import random_model, save_tokenizer


def test_a_chat_template_is_asked_for_where_prompts_are_chats(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.policy: the tokenizer of .* has no chat template"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), needs_chat_template=False).eos_token_id == 2
