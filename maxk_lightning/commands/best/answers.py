"""Sample in rounds, look, choose; for problems of a file, for one from the terminal, and from Python."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from maxk_lightning.commands.evaluate.collect_samples import check_settings
from maxk_lightning.commands.evaluate.policy import RunSettings, policy_digest, read_run_settings
from maxk_lightning.commands.inputs import check_inputs, code_digest, digest_of, write_inputs
from maxk_lightning.commands.loadable import is_loadable, loadable
from maxk_lightning.data import JsonLines, ProblemSource
from maxk_lightning.evaluation.samples import drop_half_line
from maxk_lightning.records import read_records
from maxk_lightning.rewards import MathReward, Reward, UnitTestReward
from maxk_lightning.rollouts import ManagedEngine
from maxk_lightning.rollouts.collect import arrivals
from maxk_lightning.rollouts.engine import in_groups
from maxk_lightning.rollouts.scoring import answer_in
from maxk_lightning.seeds import derive_seed
from maxk_lightning.selection import Behaviours, Candidate, ConsensusSets, Then, choose, parse_selector, shown
from maxk_lightning.selection.selector import Seen
from maxk_lightning.types import Completion, Problem, Prompt, TestCase

Ended = Callable[[int, int, Candidate], None]
"Told of a candidate when it has ended: place of its problem, its own index in the group of the problem, itself."
FIRST_ROUND = 8
"Samples of the first round with `stop_when_sure`; later rounds double what there is."


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How answers are looked for; the fields are the arguments of `best`."""

    policy: str
    config: str | None
    num_samples: int
    select: str
    stop_when_sure: float | None
    overrides: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The chosen answer to a problem, as a line of answers.jsonl; the fields are the keys."""

    id: str
    "Id of the problem."
    completion: str
    "The answer."
    how: str
    "What decided; see `selection.Choice`."
    confidence: float | None
    "Share of the candidates that compute the same on all inputs; None: not known."
    num_public_passed: int
    "Public tests that it passes."
    num_public: int
    "Public tests of the problem."
    index: int
    "Which sample it is, from 0."
    num_candidates: int
    "Samples that were drawn."


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An answer with all the candidates that it was chosen among."""

    answer: Answer
    candidates: Sequence[Candidate]
    "The group."
    clusters: Sequence[int | None]
    "Which of them compute the same, see `Behaviours.clusters`; None where no selector compares them."


@dataclass(frozen=True, slots=True)
class Given:
    """Problems that are there already, as a source."""

    problems: Sequence[Problem]

    def load(self) -> Sequence[Problem]:
        """All of them."""
        return self.problems


class Searcher:
    """Holds engine, reward and selector while answers are looked for; a context manager."""

    def __init__(self, search: Search) -> None:
        """Read the settings; nothing is sampled.

        Raises:
            ValueError: a setting is wrong.
        """
        self.search = search
        config = [] if search.config is None else ["--config", search.config]
        self.settings: RunSettings = read_run_settings([*config, *search.overrides], search.policy)
        self.selector: Then = parse_selector(search.select, self.settings.reward, "--select")

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.settings.engine, ManagedEngine):
            self.settings.engine.close()
        if isinstance(self.settings.reward, UnitTestReward | MathReward):
            self.settings.reward.close()

    def read(self, source: ProblemSource, name: str) -> list[Problem]:
        """The problems of a source; what is left out is named.

        Raises:
            ValueError: naming file, line and reason, or no problem is usable.
        """
        return self.settings.data.read(source, name)

    def find(
        self, problems: Sequence[Problem], num_samples: int | None = None, ended: Ended | None = None
    ) -> list[Found]:
        """Answer problems that `read` gave, in order. No hidden test is run, and no known answer looked at.

        Args:
            problems: What to answer.
            num_samples: N; None: that of the search.
            ended: Told of candidates as they end, or at the end of a round, if the engine does not stream. What it
                raises ends the sampling.
        """
        num_samples = num_samples or self.search.num_samples
        found: dict[int, Found] = {}
        groups: list[list[Candidate]] = [[] for _ in problems]
        left = list(range(len(problems)))
        for round_, count in enumerate(_rounds(num_samples, self.search.stop_when_sure is not None)):
            asked = [problems[place] for place in left]
            prompts = self._render(asked, round_, num_samples)
            sampling = replace(self.settings.sampling, num_completions=count)
            with arrivals(self.settings.engine, prompts, sampling) as arriving:
                candidates = _candidates(arriving, prompts)
                if ended is not None:
                    candidates = _told(candidates, ended, left, [len(groups[place]) for place in left])
                for place, more in zip(left, in_groups(candidates, len(prompts), count), strict=True):
                    groups[place] += more
            chosen = self._choose(asked, [groups[place] for place in left])
            found.update(zip(left, chosen, strict=True))
            left = [place for place in left if not self._is_sure(found[place].answer)]
            if not left:
                break
        return [found[place] for place in range(len(problems))]

    def digests(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Digest by id what is looked at of each problem: its prompt and its public tests."""
        prompts = self._render(problems, 0, self.search.num_samples)
        return {
            problem.id: digest_of([prompt, shown(problem).tests])
            for problem, prompt in zip(problems, prompts, strict=True)
        }

    def _render(self, problems: Sequence[Problem], round_: int, num_samples: int) -> list[Prompt]:
        data = self.settings.data
        seeds = [derive_seed(data.seed, "best", round_, problem.id) for problem in problems]
        return data.render(problems, seeds, data.told_k or num_samples)

    def _choose(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Found]:
        found = []
        problems = [shown(problem) for problem in problems]
        for problem, group, seen in zip(problems, groups, self.selector.observe(problems, groups), strict=True):
            choice = choose(seen)
            answer = Answer(
                id=problem.id,
                completion=group[choice.index].text,
                how=choice.how,
                confidence=choice.confidence,
                num_public_passed=_num_passed(self.settings.reward, problem, group[choice.index].text),
                num_public=len(problem.tests),
                index=choice.index,
                num_candidates=len(group),
            )
            found.append(Found(answer=answer, candidates=group, clusters=_clusters(seen)))
        return found

    def _is_sure(self, answer: Answer) -> bool:
        share = self.search.stop_when_sure
        if share is None or answer.num_public_passed < answer.num_public or answer.confidence is None:
            return False
        return answer.confidence >= share


def best_of_n(
    policy: str,
    problems: Sequence[Problem],
    num_samples: int = 64,
    select: str = "public+agreement",
    config: str | None = None,
    stop_when_sure: float | None = None,
    overrides: Sequence[str] = (),
) -> list[Answer]:
    """Sample N answers to each problem and choose one, as the command `best` does.

    Args:
        policy: Policy directory, hub name, `builtin`, a `.ckpt` file written by `fit`, or directory of a peft adapter.
        problems: What to answer; tests that are not public are not looked at.
        num_samples: N.
        select: Selector, such as `public+agreement` or `likelihood`.
        config: YAML of a run, for its prompt template, engine, reward and sampling; None: the defaults of `fit`.
        stop_when_sure: Sample in rounds, and stop where so large a share of the candidates agrees; see `best`.
        overrides: Words of a command line over the YAML, such as `--rollout.eval_sampling.temperature`, `0.8`.

    Raises:
        ValueError: a setting is wrong, or a prompt is too long.
    """
    with usable(policy) as directory, Searcher(
        Search(
            policy=directory, config=config, num_samples=num_samples, select=select, stop_when_sure=stop_when_sure,
            overrides=overrides,
        )
    ) as searcher:  # fmt: skip
        asked = searcher.read(Given(problems), "problems")
        if len(asked) < len(problems):
            raise ValueError(f"{len(problems) - len(asked)} of {len(problems)} prompts exceed data.max_prompt_tokens")
        return [found.answer for found in searcher.find(asked)]


@contextmanager
def usable(policy: str, out: Path | None = None) -> Iterator[str]:
    """A policy as engines load it; what is written for that goes to `out`/policy, or lasts as long as this does."""
    if is_loadable(policy):
        yield policy
    elif out is not None:
        yield loadable(policy, out / "policy")
    else:
        with tempfile.TemporaryDirectory(prefix="maxk_best_") as directory:
            yield loadable(policy, Path(directory) / "policy")


def answer_file(search: Search, problems: Path, out: Path, problems_per_chunk: int) -> None:
    """Answer the problems of a file; answers that are there already are kept.

    Raises:
        ValueError: a problem is malformed, or `out` holds answers of other settings.
    """
    source = JsonLines(str(problems))
    with Searcher(search) as searcher:
        asked = searcher.read(source, problems.name)
        out.mkdir(parents=True, exist_ok=True)
        check_settings(out / "settings.json", _fixed(searcher, problems_per_chunk))
        answers, candidates = out / "answers.jsonl", out / "candidates.jsonl"
        for path in (answers, candidates):
            drop_half_line(path)
        done = {record["id"] for _, record in read_records(answers, dict)} if answers.exists() else set()
        inputs, digests = out / "inputs.json", searcher.digests(asked)
        check_inputs(inputs, digests, done, "prompts or public tests")
        write_inputs(inputs, digests)
        left = [problem for problem in asked if problem.id not in done]
        with answers.open("a", encoding="utf-8") as answers_file, candidates.open("a", encoding="utf-8") as all_file:
            for start in range(0, len(left), problems_per_chunk):
                for each in searcher.find(left[start : start + problems_per_chunk]):
                    all_file.write(_line_of_candidates(each))
                    all_file.flush()  # an answer is never there without its candidates
                    answers_file.write(_line_of_answer(each))
                    answers_file.flush()
    Console().print(f"wrote {answers} and candidates.jsonl, {len(asked)} problems", soft_wrap=True)


def answer_prompt(search: Search, prompt: str, tests: Sequence[str], out: Path | None) -> None:
    """Answer one problem, and print the answer with how it was chosen.

    Raises:
        ValueError: a test is not of the form INPUT => OUTPUT.
    """
    problem = Problem(id="prompt", prompt=prompt, tests=tuple(public_test(test, "--test") for test in tests))
    with Searcher(search) as searcher:
        (found,) = searcher.find(searcher.read(Given([problem]), "--prompt"))
    console, answer = Console(), found.answer
    console.print(Markdown(answer.completion))
    passed = f"passes {answer.num_public_passed} of {answer.num_public} public tests"
    agreed = "" if answer.confidence is None else f", {answer.confidence:.0%} of the candidates compute the same"
    console.print(
        f"chosen by {answer.how} among {answer.num_candidates}: {passed}{agreed}",
        markup=False,
        soft_wrap=True,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "candidates.jsonl").write_text(_line_of_candidates(found), encoding="utf-8")
        (out / "answers.jsonl").write_text(_line_of_answer(found), encoding="utf-8")


def _line_of_answer(found: Found) -> str:
    return json.dumps(asdict(found.answer)) + "\n"


def _line_of_candidates(found: Found) -> str:
    candidates = [asdict(candidate) for candidate in found.candidates]
    return json.dumps({"id": found.answer.id, "candidates": candidates}) + "\n"


def _rounds(num_samples: int, is_adaptive: bool) -> list[int]:
    """Sizes of the rounds.

    >>> _rounds(50, True)
    [8, 8, 16, 18]
    """
    if not is_adaptive:
        return [num_samples]
    sizes: list[int] = []
    while sum(sizes) < num_samples:
        sizes.append(min(sum(sizes) or FIRST_ROUND, num_samples - sum(sizes)))
    return sizes


def _candidates(
    arriving: Iterator[tuple[int, int, Completion]], prompts: Sequence[Prompt]
) -> Iterator[tuple[int, int, Candidate]]:
    for place, sample, completion in arriving:
        text = answer_in(completion, prompts[place]) or ""
        yield place, sample, Candidate(text=text, mean_logprob=completion.mean_logprob)


def _told(
    candidates: Iterator[tuple[int, int, Candidate]], ended: Ended, places: Sequence[int], firsts: Sequence[int]
) -> Iterator[tuple[int, int, Candidate]]:
    """The same; `places` and `firsts` say which problem is asked there and how many candidates it had before."""
    for place, sample, candidate in candidates:
        ended(places[place], firsts[place] + sample, candidate)
        yield place, sample, candidate


def _clusters(seen: Seen) -> list[int | None]:
    compared = [each for each in seen.observations if isinstance(each, Behaviours | ConsensusSets)]
    return compared[0].clusters() if compared else [None] * len(seen.candidates)


def _num_passed(reward: Reward, problem: Problem, text: str) -> int:
    if not problem.tests or not isinstance(reward, UnitTestReward):
        return 0
    return reward.submit_public(problem, text).result().verdicts.count("passed")


def public_test(text: str, key: str) -> TestCase:
    """A public test of a text INPUT => OUTPUT, in which `\\n` is a line end.

    Raises:
        ValueError: naming the key, there is no arrow.
    """
    given, arrow, expected = text.replace("\\n", "\n").partition("=>")
    if not arrow:
        raise ValueError(f"{key} is {text!r}, must be INPUT => OUTPUT")
    return TestCase(input=given.strip(" ") + "\n", output=expected.strip(" ") + "\n", is_public=True)


def _fixed(searcher: Searcher, problems_per_chunk: int) -> dict[str, str | int | float | tuple[str, ...] | None]:
    search, settings = searcher.search, searcher.settings
    return {
        "policy": policy_digest(search.policy),
        "engine": type(settings.engine).__name__,
        "reward": settings.reward_config,
        "reward_code": code_digest(settings.reward),
        "select": search.select,
        "stop_when_sure": search.stop_when_sure,
        "problems_per_chunk": problems_per_chunk,
        **asdict(replace(settings.sampling, num_completions=search.num_samples)),
    }
