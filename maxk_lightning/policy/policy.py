"""The policy: log-probs of given completions.

Legend: R rows, L tokens of a row, B completions, T completion tokens, M completion tokens of all completions together,
D hidden size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from maxk_lightning.policy.architectures import Attention, head_scaling, max_positions, remove_noise
from maxk_lightning.policy.masks import layer_masks
from maxk_lightning.policy.packing import PackedRows
from maxk_lightning.policy.projection import project
from maxk_lightning.policy.shared_prompt_attention import NO_MASK_1111, split_rows, use_shared_prompt_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """Log-probs and entropies of given completion tokens in one pass."""

    logprobs_BT: Tensor
    "Log-probs of the completion tokens under the tempered policy, float32, nats, with gradient; 0 where masked."
    entropies_BT: Tensor
    "Entropies of the distributions of these tokens, float32, nats, with gradient if asked for; 0 where masked."


register_dataclass(
    TokenStats
)  # FSDP2 looks for the outputs that need a gradient; not every torch looks inside dataclasses


class Policy(nn.Module):
    """A causal language model whose forward pass returns log-probs instead of logits.

    Only completion tokens are projected to the vocabulary, a chunk at a time (see `projection`), so that the logits
    never exist as a whole. All of it is in one `forward`, because a sharded model may only be entered at its root.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        """Wrap a model, in place: without dropout, and with attention that knows of shared prompts where it can.

        Raises:
            ValueError: its attention takes no masks.
        """
        super().__init__()
        if model.config._attn_implementation not in get_args(Attention):
            raise ValueError(
                f"model.policy: attention of {type(model).__name__} is {model.config._attn_implementation}, "
                f"packed rows need {' or '.join(get_args(Attention))}"
            )
        remove_noise(model)
        self.model = model
        self._is_unmasked = use_shared_prompt_attention(model)
        self._scaling = head_scaling(model.config)
        self._max_positions = max_positions(model)

    def forward(self, rows: PackedRows, temperature: float, has_entropy_grad: bool = False) -> TokenStats:
        """Compute log-probs and entropies of the completion tokens.

        Raises:
            ValueError: a sequence is so long that the model's rotary frequencies depend on its length.
        """
        if self._max_positions is not None and int(rows.positions_RL.max()) >= self._max_positions:
            raise ValueError(
                f"model.policy: rotary frequencies of {type(self.model).__name__} change with the length of a sequence "
                f"beyond {self._max_positions} tokens: keep prompt and completion below"
            )
        layout: dict[str, Any]
        if self._is_unmasked:
            layout = {"attention_mask": NO_MASK_1111, "copies_US": rows.copies_US, "places_RL": rows.places_RL}
            if rows.input_ids_RL.device.type == "cpu":  # on a GPU kernels with a mask are slower
                layout["split"] = split_rows(rows)
        else:
            implementation = str(self.model.config._attn_implementation)
            layout = {"attention_mask": layer_masks(rows, self.model.config, implementation, self.model.dtype)}
        hidden_RLD = self.model.base_model(
            input_ids=rows.input_ids_RL, position_ids=rows.positions_RL, use_cache=False, **layout
        ).last_hidden_state
        hidden_MD = hidden_RLD.flatten(0, 1)[rows.sources_M]
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logprobs_M, entropies_M = project(
            head,
            hidden_MD,
            rows.targets_M,
            temperature / self._scaling.factor,
            cap=self._scaling.cap,
            has_entropy_grad=has_entropy_grad,
        )
        return TokenStats(
            logprobs_BT=_lay_out(logprobs_M, rows.mask_BT), entropies_BT=_lay_out(entropies_M, rows.mask_BT)
        )


def _lay_out(values_M: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.zeros(mask_BT.shape, dtype=values_M.dtype, device=values_M.device).masked_scatter(mask_BT, values_M)
