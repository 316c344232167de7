"""`flex_attention` on packed rows: the rule of the masks, and the log-probs of each completion alone.

torch has no gradient of it on a CPU; tests/shell/test_gpu.py compares those.
"""

from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from maxk_lightning.callbacks.checks import check_attention
from maxk_lightning.policy import build_policy
from maxk_lightning.policy.masks import block_mask, visible
from maxk_lightning.policy.packing import pack
from tests.support.architectures import WINDOW, random_model

PROMPTS = [[5, 6, 7], [8] * (2 * WINDOW + 3)]
COMPLETIONS = [[[9], [10] * (WINDOW + 3), [], [11, 12]], [[13] * 8, [14, 15], [16] * 5, [17] * 7]]
LONG_PROMPTS, LONG_COMPLETIONS = [[3] * 200], [[[4] * 150, [5] * 130]]  # several blocks of 128


@pytest.mark.parametrize("window", [None, WINDOW, 170])
@pytest.mark.parametrize("groups", [(PROMPTS, COMPLETIONS), (LONG_PROMPTS, LONG_COMPLETIONS)], ids=["short", "long"])
def test_the_rule_is_the_mask(groups: tuple[list[list[int]], list[list[list[int]]]], window: int | None) -> None:
    rows = pack(*groups)
    blocks = block_mask(rows, window)
    num_rows, length = rows.segments_RL.shape
    rule = create_mask(blocks.mask_mod, num_rows, 1, length, length, "cpu")
    torch.testing.assert_close(rule, visible(rows, window))
    seen = torch.nn.functional.pad(visible(rows, window), (0, -length % 128, 0, -length % 128))
    is_any = seen.unflatten(3, (-1, 128)).unflatten(2, (-1, 128)).any(5).any(3)  # blocks where anything is visible
    torch.testing.assert_close(blocks.to_dense().bool(), is_any)


@pytest.mark.parametrize("name", ["llama", "qwen2 with window", "gemma2", "gemma3", "mistral"])
@torch.no_grad()
def test_log_probs_are_those_of_the_usual_attention(name: str, tmp_path: Path) -> None:
    random_model(name).save_pretrained(tmp_path)
    usual, flex = build_policy(str(tmp_path)), build_policy(str(tmp_path), attention="flex_attention")
    assert flex.model.config._attn_implementation == "flex_attention"
    with torch.compiler.set_stance("force_eager"):
        for max_row_tokens in (None, 1, 2 * WINDOW + 8):
            rows = pack(PROMPTS, COMPLETIONS, max_row_tokens)
            torch.testing.assert_close(flex(rows, 0.7).logprobs_BT, usual(rows, 0.7).logprobs_BT, atol=3e-5, rtol=1e-5)


def test_sdpa_is_refused_where_it_leaves_something_out(tmp_path: Path) -> None:
    random_model("gemma2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.attn_implementation: sdpa leaves out"):
        build_policy(str(tmp_path), attention="sdpa")


def test_training_with_it_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.attn_implementation: flex_attention has gradients on a GPU only"):
        check_attention("flex_attention", torch.device("cpu"))
    check_attention("flex_attention", torch.device("cuda"))
    check_attention(None, torch.device("cpu"))
