"""What the reward does on machines that lack a layer. The lack is real: a seccomp filter takes it away."""

import json
import subprocess
import sys
from typing import Any

import pytest

from maxk_lightning.rewards.sandbox.selftest import PROBES, findings_of
from maxk_lightning.rewards.sandbox.worker import WorkerSettings

MACHINE_WITHOUT = """
import json, struct, sys
from maxk_lightning.rewards.sandbox import lockdown
from maxk_lightning.rewards.sandbox.syscalls import MACHINE

# Numbers in neither table: landlock_create_ruleset is the same everywhere, namespaces and mounts are not.
CALLS = {
    "landlock": {"x86_64": [444], "aarch64": [444]},
    "namespaces": {"x86_64": [165, 272, 308], "aarch64": [40, 97, 268]},
    "pidfds": {"x86_64": [434], "aarch64": [434]},
}
instructions = [(0x20, 0, 0, 0)]
for call in sys.argv[1].split(","):
    for number in CALLS[call][MACHINE]:
        instructions += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 1)]
if "namespaces" in sys.argv[1]:
    clone = lockdown.numbers_of(MACHINE)["clone"]
    instructions += [(0x15, 0, 3, clone), (0x20, 0, 0, 16), (0x45, 0, 1, 0x10000000), (0x06, 0, 0, 0x00050001)]
    instructions += [(0x20, 0, 0, 0)]
instructions += [(0x06, 0, 0, 0x7FFF0000)]
lockdown.prctl(lockdown.PR_SET_NO_NEW_PRIVS, 1)
lockdown.SeccompFilter(b"".join(struct.pack("=HBBI", *each) for each in instructions)).install()

from maxk_lightning.rewards import SandboxUnavailableError, UnitTestReward
from maxk_lightning.types import Problem, TestCase

problem = Problem(id="p", prompt="p", tests=(TestCase(input="2", output="4"),))
settings = json.loads(sys.argv[2])
with UnitTestReward(num_workers=1, **settings) as reward:
    try:
        [[score]] = reward.score([problem], [["```\\nprint(int(input()) ** 2)\\n```"]])
        print(json.dumps({"reward": score.reward, "backend": reward.backend_in_force}))
    except SandboxUnavailableError as error:
        print(json.dumps({"refusal": str(error)}))
"""


def on_a_machine_without(layers: str, **settings: Any) -> dict[str, Any]:
    command = [sys.executable, "-c", MACHINE_WITHOUT, layers, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_without_namespaces_auto_takes_plain() -> None:
    assert on_a_machine_without("namespaces") == {"reward": 1.0, "backend": "plain"}


@pytest.mark.parametrize("backend", ["auto", "plain", "bwrap"])
def test_without_landlock_it_refuses_in_one_sentence(backend: str) -> None:
    refusal = on_a_machine_without("landlock", backend=backend)["refusal"]
    assert "does not hold" in refusal
    assert "allow_unsafe: true" in refusal
    assert "\n" not in refusal


def test_without_landlock_the_user_may_insist() -> None:
    assert on_a_machine_without("landlock", allow_unsafe=True) == {"reward": 1.0, "backend": "unsafe"}


def test_self_test_tries_every_property_here() -> None:
    findings = findings_of(WorkerSettings(backend="plain"))
    assert [finding.property for finding in findings] == [probe.property for probe in PROBES]
    assert all(finding.is_held for finding in findings), [f for f in findings if not f.is_held]


@pytest.mark.parametrize(
    ("settings", "broken"),
    [
        (
            WorkerSettings(backend="plain", needs_landlock=False),
            {"no foreign file is read", "no other process is read"},
        ),
        (WorkerSettings(backend="plain", needs_seccomp=False), {"no new process", "no socket"}),
    ],
)
def test_self_test_notices_a_missing_layer(settings: WorkerSettings, broken: set[str]) -> None:
    assert broken <= {finding.property for finding in findings_of(settings) if not finding.is_held}
