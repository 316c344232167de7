"""Rollouts from a Hugging Face model in this process: the embedded default engine.

Legend: P prompts, N completions per prompt, B rows (P*N, fewer as rows finish), L prompt tokens, T completion tokens,
    V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import Cache

from maxk_lightning.policy import load_model, load_stop_tokens, load_tokenizer
from maxk_lightning.policy.memory import EngineMemory, kv_bytes_per_token
from maxk_lightning.rollouts.engine import EngineLoad, in_groups
from maxk_lightning.rollouts.engines.text import StopStrings, answer_text
from maxk_lightning.rollouts.engines.transformers import grouped_query_attention
from maxk_lightning.rollouts.engines.transformers.kv_cache import ReservedLayer
from maxk_lightning.rollouts.engines.weights import complete, engine_dtype, starting_dtype
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, FinishReason, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16"]
COMPACT_BELOW = 0.75
"Finished rows leave the batch once fewer than this share of its rows is still running: removal copies the cache."


class TransformersEngine:
    """Batched, KV-cached sampling with a model of its own, to which weights are copied after every update.

    Sample i of a prompt is drawn by inversion from uniform numbers that depend on (prompt seed, i) alone, so the rest
    of its batch, the number of ranks and the number of completions do not change it (up to the rounding of the model
    itself). The model's own generation_config is not applied, except for its stop tokens.
    """

    def __init__(
        self, policy: str = "builtin", *, max_batch_rows: int = 256, device: str = "auto", dtype: Dtype = "auto"
    ) -> None:
        """Prepare an engine; the model is loaded at the first use.

        Args:
            policy: Directory, hub name or `builtin`; training fills in `model.policy`.
            max_batch_rows: Completions generated at the same time; bounds the KV cache.
            device: A torch device, or `auto` for the current GPU where there is one.
            dtype: Type of weights and computation; log-probs are computed from the logits in float32. `auto`: bfloat16
                on a GPU, float32 on a CPU. `bfloat16` is several times faster on CPUs that have it, too, and goes with
                `trainer.precision: bf16-mixed`.

        Raises:
            ValueError: `max_batch_rows` is below 1.
        """
        # A default of its own would follow a YAML to another engine: jsonargparse keeps arguments of the same name when
        # `rollout.engine` names another class than the default.
        if max_batch_rows < 1:
            raise ValueError(f"rollout.engine.max_batch_rows is {max_batch_rows}, must be at least 1")
        self.policy = policy
        self.max_batch_rows = max_batch_rows
        self.device = device
        self.dtype = dtype
        self.version = 0
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._stop_tokens: set[int] = set()

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy a full set of weights.

        Raises:
            ValueError: a name is unknown, or a weight of the model was not given.
        """
        own = self._load()[0].state_dict()
        with torch.no_grad():
            for name, tensor in complete(named_tensors, own):
                own[name].copy_(tensor)
        self.version = version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Sample completions; prompts of similar length share a batch."""
        return in_groups(self.stream(prompts, sampling), len(prompts), sampling.num_completions)

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int, Completion]]:
        """Yield the same completions as they end: (index of the prompt, sample in its group, completion)."""
        model, tokenizer = self._load()
        decoder = _Decoder(model, tokenizer, self._stop_tokens, sampling)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].token_ids))
        prompts_per_batch = max(1, self.max_batch_rows // sampling.num_completions)
        for start in range(0, len(order), prompts_per_batch):
            indices = order[start : start + prompts_per_batch]
            for row, completion in decoder.stream([prompts[index] for index in indices]):
                place, sample = divmod(row, sampling.num_completions)
                yield indices[place], sample, completion

    def memory(self, load: EngineLoad) -> EngineMemory:
        """Estimate the memory that it will hold: a copy of the weights, and the KV cache of its largest batch."""
        dtype = engine_dtype(self.dtype, on_gpu=load.gpu_bytes is not None)
        num_rows = min(self.max_batch_rows, load.num_completions)
        kv_cache_bytes = num_rows * load.max_tokens * kv_bytes_per_token(self.policy, dtype)
        return EngineMemory(weights_dtype=dtype, kv_cache_bytes=kv_cache_bytes)

    def _load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if self._model is None or self._tokenizer is None:
            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            dtype = starting_dtype(self.dtype, on_gpu=torch.device(device).type == "cuda")
            with torch.inference_mode(False):  # weights made in inference mode could never be updated
                self._model = load_model(self.policy, dtype).to(device).eval()  # type: ignore[arg-type]
            if self._model.device.type == "cpu" and self._model.config._attn_implementation == "sdpa":
                self._model.set_attn_implementation(grouped_query_attention.NAME)
            self._tokenizer = load_tokenizer(self.policy)
            self._stop_tokens = load_stop_tokens(self.policy, self._tokenizer)
        return self._model, self._tokenizer


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What has been drawn so far; 0 where nothing has."""

    tokens_BT: Tensor
    logprobs_BT: Tensor
    entropies_BT: Tensor


@dataclass(frozen=True, slots=True)
class _Decoder:
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    stop_tokens: set[int]
    sampling: Sampling

    @torch.inference_mode()
    def stream(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Completion]]:
        """Yield the completions of one batch of prompts as they end, with their rows (prompt by prompt)."""
        max_new_tokens = self.sampling.max_new_tokens
        device = self.model.device
        uniforms_BT = _uniforms(prompts, self.sampling.num_completions, max_new_tokens).to(device)
        stop_tokens = torch.tensor(sorted(self.stop_tokens), device=device)
        stop_strings = StopStrings(self.tokenizer, self.sampling.stop)
        tokens_BT = torch.zeros(uniforms_BT.shape, dtype=torch.long, device=device)
        drawn = _Drawn(tokens_BT, torch.zeros(uniforms_BT.shape).to(device), torch.zeros(uniforms_BT.shape).to(device))

        logits_BV, cache, mask_BL, positions_B = self._prefill(prompts)
        rows_B = torch.arange(len(uniforms_BT), device=device)  # rows still in the batch
        running_B = torch.ones_like(rows_B, dtype=torch.bool)
        for step in range(max_new_tokens):
            last = draw(logits_BV, uniforms_BT[rows_B, step], self.sampling.temperature, self.sampling.top_p)
            drawn.tokens_BT[rows_B, step], drawn.logprobs_BT[rows_B, step], drawn.entropies_BT[rows_B, step] = last
            last_B = last[0]
            is_stop_B = running_B & torch.isin(last_B, stop_tokens)
            if self.sampling.stop:
                is_stop_B |= running_B & self._completes_stop_string(stop_strings, drawn, rows_B, step + 1)
            running_B &= ~is_stop_B
            for row in rows_B[is_stop_B].tolist():
                yield row, self._completion(prompts, drawn, row, step + 1, "stop")
            num_running = int(running_B.sum())
            if num_running == 0 or step + 1 == max_new_tokens:
                break
            if num_running < COMPACT_BELOW * len(rows_B):
                kept = running_B.nonzero().squeeze(-1)
                cache.batch_select_indices(kept)
                rows_B, last_B, positions_B, mask_BL = rows_B[kept], last_B[kept], positions_B[kept], mask_BL[kept]
                running_B = running_B[kept]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)
            logits_BV = self._forward(last_B[:, None], mask_BL, positions_B[:, None], cache)
            positions_B = positions_B + 1
        for row in rows_B[running_B].tolist():
            yield row, self._completion(prompts, drawn, row, max_new_tokens, "length")

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Cache, Tensor, Tensor]:
        """Read left-padded prompts once each, then repeat the cache for their completions."""
        width = max(len(prompt.token_ids) for prompt in prompts)
        ids_PL = torch.zeros(len(prompts), width, dtype=torch.long)
        mask_PL = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_PL[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask_PL[row, width - len(prompt.token_ids) :] = 1
        ids_PL, mask_PL = ids_PL.to(self.model.device), mask_PL.to(self.model.device)
        cache = Cache(layer_class_to_replicate=ReservedLayer)
        logits_PV = self._forward(ids_PL, mask_PL, (mask_PL.cumsum(1) - 1).clamp_min(0), cache)
        n = self.sampling.num_completions
        cache.batch_repeat_interleave(n)
        mask_BL = mask_PL.repeat_interleave(n, dim=0)
        return logits_PV.repeat_interleave(n, dim=0), cache, mask_BL, mask_BL.sum(1)

    def _forward(self, ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor, cache: Cache) -> Tensor:
        """Logits after the last token."""
        outputs = self.model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = outputs.logits[:, -1].float()
        return logits_BV

    @staticmethod
    def _completes_stop_string(strings: StopStrings, drawn: "_Drawn", rows_B: Tensor, length: int) -> Tensor:
        """Whether the last token of a row completes a stop string (bool `[B]`)."""
        token_ids = drawn.tokens_BT[rows_B, :length].tolist()
        return torch.tensor([strings.end(tokens) for tokens in token_ids], device=rows_B.device)

    def _completion(
        self, prompts: Sequence[Prompt], drawn: "_Drawn", row: int, length: int, finish_reason: FinishReason
    ) -> Completion:
        tokens = drawn.tokens_BT[row, :length].tolist()
        return Completion(
            token_ids=tuple(tokens),
            logprobs=tuple(drawn.logprobs_BT[row, :length].tolist()),
            entropies=tuple(drawn.entropies_BT[row, :length].tolist()),
            text=answer_text(self.tokenizer, prompts[row // self.sampling.num_completions], tokens),
            finish_reason=finish_reason,
        )


def _uniforms(prompts: Sequence[Prompt], num_completions: int, max_new_tokens: int) -> Tensor:
    """Uniform numbers in [0, 1) of every sample, float64 `[B, T]`."""
    rows = []
    for prompt in prompts:
        for sample in range(num_completions):
            generator = torch.Generator().manual_seed(derive_seed(prompt.seed, sample))
            rows.append(torch.rand(max_new_tokens, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row by inversion of the cumulative distribution (in float64: float32 sums drift over large V).

    Returns tokens_B, their log-probs_B and the entropies_B of the tempered, truncated distribution, in nats.
    """
    logprobs_BV = torch.log_softmax(logits_BV / temperature, dim=-1)
    if top_p < 1.0:
        logprobs_BV = _nucleus(logprobs_BV, top_p)
    probs_BV = logprobs_BV.exp()
    cumulative_BV = probs_BV.double().cumsum(-1)
    targets_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp_max(logits_BV.shape[-1] - 1)
    entropies_B = -torch.xlogy(probs_BV, probs_BV).sum(-1)
    return tokens_B1.squeeze(-1), logprobs_BV.gather(-1, tokens_B1).squeeze(-1), entropies_B


def _nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose mass reaches `top_p`, renormalised."""
    sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True)
    mass_before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
    sorted_BV = sorted_BV.masked_fill(mass_before_BV >= top_p, -torch.inf)
    return torch.log_softmax(torch.empty_like(sorted_BV).scatter(-1, order_BV, sorted_BV), dim=-1)
