"""`best`: problems -> one answer each, chosen among N samples without the hidden tests."""

from collections.abc import Sequence
from pathlib import Path

from maxk_lightning.commands.arguments import check_counts
from maxk_lightning.commands.best.address import Address


def best(
    policy: str,
    config: str | None = None,
    problems: str | None = None,
    prompt: str | None = None,
    test: str | list[str] | None = None,
    serve: str | None = None,
    out: str | None = None,
    num_samples: int = 64,
    select: str = "public+agreement",
    stop_when_sure: float | None = None,
    problems_per_chunk: int = 8,
    overrides: Sequence[str] = (),
) -> None:
    """Sample N answers to each problem and keep one: chosen by public tests and by agreement, never by hidden tests.

    A run that was killed continues when the same command is given again.

    Args:
        policy: Policy directory, hub name, `builtin`, a `.ckpt` file written by `fit`, or directory of a peft adapter.
        config: YAML of a run, for its prompt template, engine, `rollout.reward` and `rollout.eval_sampling`; default:
            those of `fit` without a YAML. Of several, later ones lie over earlier ones.
        problems: JSON Lines of problems; their tests with `"public": true` are the public ones.
        prompt: Instead of `problems`: one problem, whose answer is printed.
        test: Public test of `prompt`: standard input and output, such as "1 2 => 3"; several as a list, and `\\n` is a
            line end.
        serve: Instead of `problems`: [HOST:]PORT of a web page that asks for prompts and shows the candidates; without
            HOST, only this machine reaches it. `num_samples` is then the most that may be asked for.
        out: Directory for answers.jsonl and candidates.jsonl; needed with `problems`.
        num_samples: N.
        select: Selector, as in `evaluate --select`; only one.
        stop_when_sure: Sample in rounds of 8, 8, 16, 32, ... up to N, and stop when the answer passes every public test
            and at least this share of the candidates agrees with it; default: sample N.
        problems_per_chunk: Problems sampled together.
        overrides: Keys laid over the YAML.

    Raises:
        ValueError: a setting is wrong, or `out` holds answers of other settings.
    """
    check_counts(num_samples=num_samples, problems_per_chunk=problems_per_chunk)
    if sum(given is not None for given in (problems, prompt, serve)) != 1:
        raise ValueError("give either --problems or --prompt or --serve")
    if problems is not None and out is None:
        raise ValueError("--problems needs --out")
    if prompt is None and test is not None:
        raise ValueError("--test belongs to --prompt")
    if serve is not None and out is not None:
        raise ValueError("--out belongs to --problems and --prompt: the page of --serve writes nothing")
    address = None if serve is None else Address.parse(serve)
    if stop_when_sure is not None and not 0.0 < stop_when_sure <= 1.0:
        raise ValueError(f"--stop_when_sure is {stop_when_sure}, must be a share in (0, 1]")
    if config is not None and not Path(config).is_file():
        raise ValueError(f"--config: {config} is not a file")
    from maxk_lightning.commands.best.answers import Search, answer_file, answer_prompt, usable  # imports torch

    target = None if out is None else Path(out)
    with usable(policy, target) as directory:
        search = Search(
            policy=directory,
            config=config,
            num_samples=num_samples,
            select=select,
            stop_when_sure=stop_when_sure,
            overrides=overrides,
        )
        if address is not None:
            from maxk_lightning.commands.best.server import serve as serve_page

            serve_page(search, address)
        elif prompt is not None:
            answer_prompt(search, prompt, [test] if isinstance(test, str) else test or [], target)
        else:
            assert problems is not None
            assert target is not None
            answer_file(search, Path(problems), target, problems_per_chunk)
