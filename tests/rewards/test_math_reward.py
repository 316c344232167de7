"""Answers are compared as math-verify does, and nothing that a completion holds hangs or is judged silently."""

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxk_lightning.rewards import MathReward
from maxk_lightning.types import Problem, Score

pytestmark = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    with MathReward(num_workers=2) as reward:
        yield reward


def question(answer: str | None, id_: str = "q") -> Problem:
    return Problem(id=id_, prompt="?", answer=answer)


def scores_of(reward: MathReward, answer: str, *texts: str) -> list[Score]:
    return reward.score([question(answer)], [list(texts)])[0]


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("72", r"so \boxed{72}", r"72, no: \boxed{71}"),
        ("72", "The answer is 72.", "The answer is 7.2."),
        ("72", "#### 72", "#### -72"),
        ("1,000", r"$\boxed{1000}$", "1,001"),
        ("0.5", r"It is \(\frac{1}{2}\).", r"It is \(\frac{1}{3}\)."),
        (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt 2}}", r"\boxed{\sqrt 2}"),
        (r"x^2+2x+1", r"\boxed{(x+1)^2}", r"\boxed{(x-1)^2}"),
        (r"\{1,2,3\}", r"\boxed{\{3,1,2\}}", r"\boxed{\{1,2\}}"),
        (r"[0,\infty)", r"\boxed{[0, \infty)}", r"\boxed{(0, \infty)}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\boxed{1}"),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", r"\boxed{\text{Alex}}"),
        ("5", r"\boxed{x=5}", r"\boxed{x=6}"),
        ("72", "**Answer:** 9 * 8 = **72**", "The answer is **71**, not 72**."),
        ("72", "***72***", "#### ***71***"),
        ("72", "So **72 apples**, or `72`.", "__7__"),
        ("8", "2**3", "2 ** 4"),
        ("1e-5", r"\boxed{0.00001}", r"\boxed{-5}"),
        ("6.02E3", r"\boxed{6020}", r"\boxed{6.02}"),
    ],
)
def test_equal_answers_pass_and_others_do_not(reward: MathReward, gold: str, right: str, wrong: str) -> None:
    passed, failed = scores_of(reward, gold, right, wrong)
    assert (passed.reward, passed.verdicts) == (1.0, ("passed",))
    assert (failed.reward, failed.verdicts) == (0.0, ("wrong_answer",))


def test_a_completion_without_an_answer_is_told_apart(reward: MathReward) -> None:
    (score,) = scores_of(reward, "3", "I do not know.")
    assert (score.reward, score.verdicts) == (0.0, ("no_answer",))


def test_latex_alone_counts_where_it_is_asked_for() -> None:
    """The rule of TRL's accuracy_reward, computed here as its source does (trl 1.16, rewards/accuracy_rewards.py)."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    texts = [
        r"\boxed{\frac{1}{2}}",
        "The answer is 0.5",
        "$0.5$",
        r"final answer is $\frac{1}{2}$. I hope",
        r"\boxed{2}",
    ]
    expected = [
        verify(parse(r"$\frac{1}{2}$"), parse(text, extraction_config=[config], extraction_mode="first_match"))
        for text in texts
    ]
    with MathReward(needs_latex=True, num_workers=1) as reward:
        found = [score.reward for score in scores_of(reward, r"\frac{1}{2}", *texts)]
    assert found == [float(is_right) for is_right in expected]
    assert set(found) == {0.0, 1.0}


def test_what_takes_too_long_is_missing_and_says_so() -> None:
    with MathReward(num_workers=1, time_limit_s=0.5) as reward:
        (hang, after) = scores_of(reward, "3", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3}")
        assert (hang.reward, hang.verdicts, hang.missing_cause) == (None, ("infra_error",), "judging_too_long")
        assert after.reward == 1.0


def test_right_answers_that_cannot_be_read_are_refused_before_the_run(reward: MathReward) -> None:
    good = [question(rf"\frac{{{n}}}{{7}}", f"good{n}") for n in range(40)]
    reward.check_problems(good)
    with pytest.raises(ValueError, match=r"problem 'bad': math-verify cannot read the answer '\\\\frac\{9\}\{'"):
        reward.check_problems([*good, question(r"\frac{9}{", "bad")])
    with pytest.raises(ValueError, match="problem 'none' has no `answer`"):
        reward.check_problems([question(None, "none")])
    with pytest.raises(ValueError, match="problem 'long': math-verify cannot read"):
        reward.check_problems([question("1+" * 10_000 + "1", "long")])


def test_a_right_answer_that_hangs_the_reader_is_refused() -> None:
    with (
        MathReward(num_workers=1, time_limit_s=0.5) as reward,
        pytest.raises(ValueError, match="problem 'huge': math-verify cannot read"),
    ):
        reward.check_problems([question(r"\frac12", "fine"), question(r"9^{9^{9^{9^9}}} \bmod 7^{7^{7^{7}}}", "huge")])


def test_a_missing_package_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"MathReward needs the package math-verify: pip install 'maxk-lightning\[math\]'"
    ):
        MathReward().check()


INJECTIONS = (
    "__import__('os').system('touch {0}')",
    "open('{0}','w').write('x')",
    "eval(\"open('{0}','w')\")",
    "(lambda: open('{0}','w'))()",
    "1+__import__('pathlib').Path('{0}').touch()",
    r"\text{{__import__('os').system('touch {0}')}}",
    r"\operatorname{{exec}}(open('{0}','w'))",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "print('passed')",
    '"passed"\n',
)
SHAPES = ("{0}", "\\boxed{{{0}}}", "${0}$", "The answer is {0}.", "\\[{0}\\]", "#### {0}")


def hostile(target: Path) -> list[str]:
    """Malformed and malicious answers, none of which is 3."""
    draw = random.Random(0)
    cores = [text.format(target) for text in INJECTIONS]
    cores += ["{" * n + "4" + "}" * m for n, m in ((1, 0), (0, 1), (40, 40), (3000, 3000), (5000, 0), (0, 5000))]
    cores += ["\\frac{" * n + "1" for n in (1, 50, 2000)] + ["\\sqrt{" * n + "4" + "}" * n for n in (50, 500)]
    cores += ["(" * n + "4" + ")" * n for n in (50, 1000)] + ["4" + "!" * n for n in (1, 3, 30)]
    cores += ["9^{9^{9}}", "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", "10**10**10", "(10^{10})!", "1/0", "0^0"]
    cores += [r"\sum_{n=1}^{10^{12}} \frac{1}{n^2}", r"\int_0^{10^9} e^{x^{x^x}} dx", r"\prod_{i=1}^{10^9} i"]
    cores += [r"\binom{10^9}{5^8}", r"-\infty", "4" * 5000, "0." + "4" * 5000, "1e999999999", "4e-999999999", "0x4"]
    cores += ["\u0664", "\u56db", "\u202e4", "4\u0000", "\ud800", "\U0001d7dc", "\U0001f4a5" * 100]
    cores += [
        r"\begin{pmatrix}" + "4&" * 2000 + r"\end{pmatrix}",
        r"\left(4",
        r"4\right)",
        r"\boxed{\boxed{4}}",
        "\\\\",
    ]
    cores += ["$$$$", ",".join(map(str, range(4, 900))), "x=" * 300 + "4", r"\%" * 500, "4 " * 4000, "=" * 5000]
    cores += ["-" * 3000 + "4"]
    cores += ["".join(draw.choices("0456789+-*/^(){}\\_$&, .abx=<>!|[]", k=draw.randint(5, 120))) for _ in range(140)]
    texts = [draw.choice(SHAPES).format(core) if "{0}" not in core else core for core in cores]
    return [*texts, "4" * 2_000_000, "\\boxed{" * 300_000, "$" * 1_000_000]


@pytest.mark.slow
def test_hostile_answers_hang_nothing_and_get_no_silent_verdict(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    texts = [text.replace("3", "4") for text in hostile(target)]
    assert len(texts) >= 200
    with MathReward(num_workers=2, time_limit_s=1.0) as reward:
        scores = scores_of(reward, "3", *texts)
        (after,) = scores_of(reward, "3", r"\boxed{3}")
    assert after.reward == 1.0
    assert not target.exists()
    for text, score in zip(texts, scores, strict=True):
        shown = text[:60]
        (verdict,) = score.verdicts
        assert verdict in ("wrong_answer", "no_answer", "infra_error"), shown
        if verdict == "infra_error":
            assert score.reward is None, shown
            assert score.missing_cause in ("judging_too_long", "judging_failed"), shown
        else:
            assert (score.reward, score.missing_cause) == (0.0, None), shown
    assert sum(score.reward is None for score in scores) < len(texts) / 5
