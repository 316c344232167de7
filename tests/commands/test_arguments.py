"""Command lines of plain commands: the function's signature, checked, and nothing else."""

from collections.abc import Sequence

import pytest

from maxk_lightning.commands.arguments import call

CALLS: list[tuple[object, ...]] = []


def join(*parts: str, out: str, count: int = 1) -> None:
    """Join parts.

    Args:
        parts: What to join.
        out: Where to.
    """
    CALLS.append((parts, out, count))


def train(config: str, overrides: Sequence[str] = ()) -> None:
    """Train on a configuration."""
    CALLS.append((config, list(overrides)))


def test_words_options_and_overrides_reach_the_function() -> None:
    CALLS.clear()
    call(join, ["--out", "x", "a", "b"])
    call(join, ["a", "--out=x", "--count", "3"])
    call(train, ["--data.seed", "1", "--config", "c.yaml", "--rollout.engine=E"])
    assert CALLS == [
        (("a", "b"), "x", 1),
        (("a",), "x", 3),
        ("c.yaml", ["--data.seed", "1", "--rollout.engine=E"]),
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["--out", "x"],
        ["a"],
        ["a", "--out", "x", "--coun", "3"],
        ["a", "--out", "x", "--count", "three"],
        ["a", "--data.x", "1"],
    ],
    ids=["no word", "no option", "abbreviation", "type", "overrides where there are none"],
)
def test_wrong_command_lines_end_with_a_sentence_and_status_2(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    CALLS.clear()
    with pytest.raises(SystemExit) as ended:
        call(join, args)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert CALLS == []


def test_help_describes_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(join, ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "What to join." in text
    assert "Where to." in text
