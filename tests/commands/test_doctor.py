"""`doctor` says what the self-test says."""

import pytest

from maxk_lightning.commands.doctor import doctor
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.sandbox.selftest import PROBES


def test_table_names_every_property_and_the_backend_that_auto_takes(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    printed = " ".join(capsys.readouterr().out.split())
    assert all(probe.property.split()[0] in printed for probe in PROBES)
    assert f"in {UnitTestReward().backend_in_force}," in printed
    assert "torch" in printed
