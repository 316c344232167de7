"""`doctor` says what the self-test says."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from maxk_lightning.commands.doctor import allocator_remark, doctor, software_table
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's answer counts there")
@pytest.mark.parametrize(
    ("line", "has_bfloat16"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512vl", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),  # Arm
        ("flags\t\t: fpu avx2 avx512f avx512_fp16", False),
        ("", False),
    ],
)
def test_bfloat16_is_proposed_where_the_processor_has_it(line: str, has_bfloat16: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    console = Console(width=200)
    with console.capture() as printed:
        console.print(software_table(tmp_path / "cpuinfo"))
    assert ("trainer.precision: bf16-mixed" in printed.get()) == has_bfloat16
    assert ("several times slower than float32" in printed.get()) != has_bfloat16
