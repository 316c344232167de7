"""Data that crosses layers. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Compare = Literal["tokens", "lines_decimal", "tokens_float", "exact"]
ValueFormat = Literal["json", "python"]
Header = Literal["livecodebench"]
Verdict = Literal[
    "passed",
    "wrong_answer",
    "runtime_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "no_code",
    "no_answer",
    "unfinished_reasoning",
    "infra_error",
]
"""One per test of a program. A reward that compares answers gives one verdict: `passed`, `wrong_answer`, `no_answer`
(the completion holds none), `infra_error`. `unfinished_reasoning`: the completion ended before its answer began."""
MissingCause = Literal[
    "lock_down_failed", "worker_lost", "no_worker", "hand_over_failed", "judging_too_long", "judging_failed"
]
"""Why the sandbox gave no verdict: the program's process could not be made or locked down, its worker died or fell
silent, no worker could be started, or the program could not be handed over (no memory or descriptors left). Of an
answer that is compared: that took too long, or ended in an error."""
FinishReason = Literal["stop", "length"]
LARGEST = 2**20
"More completions, tokens or prompts at once than this are a slip of the keyboard, which would end in an overflow."


@dataclass(frozen=True, slots=True, kw_only=True)
class TestCase:
    """One test of a problem."""

    __test__ = False  # not a pytest class

    input: str
    "Standard input, or the JSON arguments one per line when the problem names a `function`."
    output: str
    "Expected standard output, or the JSON return value."
    is_public: bool = False
    "Whether the statement shows it, so that an answer may be chosen by it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A verifiable task: what the policy reads, and what rewards need to judge its answer."""

    id: str
    "Unique inside one data set."
    prompt: str
    "The statement, before any chat template; of a chat, the text of its last message."
    messages: Sequence[Mapping[str, Any]] = ()
    "The chat that the policy continues, each turn a `role` and a `content`; empty: `prompt` is the only turn."
    tests: Sequence[TestCase] = ()
    """Needed only by rewards that run them, and then at least one. Some sources leave them on disk and decode them at
    every access."""
    answer: str | None = None
    "What a right answer comes to; None: not known."
    columns: Mapping[str, Any] = field(default_factory=dict)
    "Further columns of the problem's row, as they were read: rewards see them by name."
    time_limit_s: float | None = None
    "CPU seconds per test; None: the reward's default."
    memory_limit_mb: int | None = None
    "Address space per test in MiB; None: the reward's default."
    compare: Compare = "tokens"
    "How program output is compared with the expected output."
    checker: str | None = None
    "Python source of a checker (Codeforces convention) that replaces the comparison, of calls too."
    function: str | None = None
    "Name of the function or method that call tests call; None: stdin/stdout tests."
    values: ValueFormat = "json"
    """How a call's arguments (one per line), expected and returned values are written: JSON, or Python literals, which
    distinguish tuples from lists and hold sets, None, complex numbers, `inf`, `nan` and `Counter({...})` too. Of a
    program on standard input, `python` means that its output is one literal, compared as a value, not by `compare`."""
    atol: float | None = None
    "Python values: EvalPlus' rule, floats within this absolute tolerance (0: 1e-6); None: equal as Python compares."
    header: Header | None = None
    "Names that programs find imported: those of LiveCodeBench's header; None: none."
    prefix: str | None = None
    "Code that the prompt has begun: a program that does not start with it gets it put in front (LiveBench completion)."
    metadata: dict[str, Any] = field(default_factory=dict)
    "Free-form facts for reports (difficulty, source, ...); nothing is computed from them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem's prompt as the policy reads it."""

    problem_id: str
    "Id of the problem it was rendered from."
    token_ids: tuple[int, ...]
    "What the policy continues: the chat template's tokens, generation prompt and prefill included; never empty."
    seed: int
    "Seed of the group; sample i draws from (seed, i) alone, so no sample depends on the batch it is generated in."
    prefill: str = ""
    "Text at the end of the tokens that the answer begins with: `Completion.text` starts with it."
    answer_after: str | None = None
    "Text that ends the reasoning: rewards see what follows its last occurrence; None: they see all."
    told_k: int | None = None
    "Number of tries that was drawn for the group, or that the prompt names; None: neither."


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads the `vars` of an instance that is a default
class Sampling:
    """How completions are drawn; defaults are the paper's (arXiv:2510.23393, section 4)."""

    num_completions: int = 8
    "n, the size of a group."
    max_new_tokens: int = 256
    "Completions still running after this many tokens are cut and marked `length`."
    temperature: float = 1.0
    "Divides the logits; behaviour log-probs are those of the tempered policy. Positive."
    top_p: float = 1.0
    "Nucleus mass in (0, 1]; training needs 1.0, or log-probs no longer belong to the policy being trained."
    stop: tuple[str, ...] = ()
    """Strings that end a completion, besides the stop tokens: it ends with the token that completes one in what was
    sampled, a prefill not included. That token counts and is trained on, and its text stays."""

    def __post_init__(self) -> None:
        for name, number in (("num_completions", self.num_completions), ("max_new_tokens", self.max_new_tokens)):
            if number < 1:
                raise ValueError(f"{name} is {number}, must be at least 1")
            if number > LARGEST:
                raise ValueError(f"{name} is {number}, must be at most {LARGEST}")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature is {self.temperature}, must be positive")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}, must be in (0, 1]")
        object.__setattr__(self, "stop", tuple(self.stop))  # lists come from YAML and JSON
        if not all(self.stop):
            raise ValueError(f"stop is {list(self.stop)}, must hold no empty string")


class Segment(NamedTuple):
    """Tokens of a completion that one version of the weights drew, up to the next segment or the end."""

    first_token: int
    "Place of the first of them in the completion, from 0."
    version: int
    "Optimizer step of the weights."


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer of the behaviour policy."""

    token_ids: tuple[int, ...]
    "Sampled tokens, the stop token included when there is one."
    logprobs: tuple[float, ...]
    "log pi_old of every sampled token under the tempered policy, in nats; same length as `token_ids`."
    entropies: tuple[float, ...] | None
    "Entropy in nats of the distribution each token was drawn from; None where the engine does not report it."
    text: str
    "Answer as a reward reads it: the prompt's prefill, then the decoded tokens without special tokens."
    finish_reason: FinishReason
    "`stop`: ended by a stop token or stop string; `length`: cut at max_new_tokens."
    segments: tuple[Segment, ...] = ()
    """Which weights drew which tokens, in order, where they may have changed during the rollout; empty: those of its
    `version` drew all."""

    @property
    def mean_logprob(self) -> float | None:
        """Mean of `logprobs`, in nats; None without a token."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a reward says of one completion."""

    reward: float | None
    "None: could not be scored (an `infra_error`); the sample is left out of its group."
    verdicts: tuple[Verdict, ...]
    "One per selected test; empty for rewards that run no tests."
    missing_cause: MissingCause | None = None
    "Why there is no reward, where the sandbox knows."
    behaviour: int | str | None = None
    """Equal for two completions of a problem that said the same on all tests, as it compares outputs; None: not known.
    Objectives that count different answers ask for it."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    "What each reward function said, by its name, where functions were asked; None: it left this completion out."
