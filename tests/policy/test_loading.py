"""Tokenizers of base models."""

from pathlib import Path

import pytest

from maxk_lightning.data import PromptTemplate
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.types import Problem
from tests.support.architectures import random_model, save_tokenizer


def test_a_chat_template_is_asked_for_where_prompts_are_chats(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token_id == 2
    problem = Problem(id="a", prompt="a", tests=())
    with pytest.raises(ValueError, match=r"^data\.template: the tokenizer of .* has no chat template"):
        PromptTemplate().render(problem, tokenizer, seed=0)
    assert PromptTemplate(chat=False).render(problem, tokenizer, seed=0).token_ids
