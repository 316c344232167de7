"""Training commands that must be refused."""

import pytest

from maxk_lightning.commands.trainer import MaxKCLI


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a training command that must be refused; return the last line of what it said."""
    with pytest.raises(SystemExit) as refused:
        MaxKCLI(args)
    assert refused.value.code not in (0, None)
    return capsys.readouterr().err.strip().splitlines()[-1]
