"""`doctor` says what the self-test says."""

import pytest

from maxk_lightning.commands.doctor import allocator_remark, doctor
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.sandbox.selftest import PROBES


def test_table_names_every_property_and_the_backend_that_auto_takes(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    printed = " ".join(capsys.readouterr().out.split())
    assert all(probe.property.split()[0] in printed for probe in PROBES)
    assert f"in {UnitTestReward().backend_in_force}," in printed
    assert "torch" in printed
    assert "flash_attn" not in printed  # nothing here uses it


def test_the_allocator_is_advised_on_unless_it_is_set() -> None:
    assert "export PYTORCH_ALLOC_CONF=expandable_segments:True" in allocator_remark({})
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert allocator_remark({name: "max_split_size_mb:64,expandable_segments:True"}) == ""
        assert allocator_remark({name: "expandable_segments:False"}) != ""
