"""Verdicts on disk: what another run of the reward takes from them, and what it runs again."""

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.verdict_store import VerdictStore
from maxk_lightning.rewards.verdicts import Judgement, behaviour_on
from maxk_lightning.types import Problem, TestCase, Verdict

COIN = Problem(id="coin", prompt="p", tests=(TestCase(input="", output="0"),))
NUM_COINS = 40
"Two runs of so many coins agree by chance once in 2^40 times."


def judged(*verdicts: Verdict) -> Judgement:
    return Judgement(verdicts=verdicts, behaviour=behaviour_on({0: verdicts[-1].encode()} if verdicts else {}, ()))


def coins() -> list[str]:
    return [f"```python\nimport os\nprint(os.urandom(1)[0] % 2) # {i}\n```" for i in range(NUM_COINS)]


def rewards_with(cache_file: Path | None, **settings: object) -> list[float | None]:
    file = None if cache_file is None else str(cache_file)
    with UnitTestReward(num_workers=2, cache_file=file, **settings) as reward:  # type: ignore[arg-type]
        [scores] = reward.score([COIN], [coins()])
    return [score.reward for score in scores]


def test_another_run_does_not_run_programs_again(tmp_path: Path) -> None:
    first = rewards_with(tmp_path / "deep" / "verdicts.sqlite")
    assert rewards_with(tmp_path / "deep" / "verdicts.sqlite") == first
    assert rewards_with(tmp_path / "deep" / "verdicts.sqlite", cache_size=0) == first
    assert rewards_with(None) != first


def test_what_changes_a_verdict_is_not_shared(tmp_path: Path) -> None:
    first = rewards_with(tmp_path / "verdicts.sqlite")
    assert rewards_with(tmp_path / "verdicts.sqlite", time_limit_s=3.0) != first
    assert rewards_with(tmp_path / "verdicts.sqlite", allow_site_packages=True) != first


def test_verdicts_of_limits_are_not_kept(tmp_path: Path) -> None:
    store = VerdictStore(str(tmp_path / "verdicts.sqlite"))
    store.put(b"1", judged("passed", "wrong_answer"))
    for limit in ("time_limit", "memory_limit", "output_limit", "infra_error"):
        store.put(limit.encode(), judged("passed", limit))  # type: ignore[arg-type]
        assert store.get(limit.encode(), 2) is None
    store.close()
    assert store.get(b"1", 2) == judged("passed", "wrong_answer")


def test_whether_a_program_is_constant_is_kept(tmp_path: Path) -> None:
    store = VerdictStore(str(tmp_path / "verdicts.sqlite"))
    constant = replace(judged("passed", "wrong_answer"), is_constant=True)
    store.put(b"1", constant)
    store.put(b"2", judged("passed", "wrong_answer"))
    assert store.get(b"1", 2) == constant
    assert store.get(b"2", 2) == judged("passed", "wrong_answer")
    assert store.get(b"1", 1) is store.get(b"1", 3) is None


def test_a_row_without_a_behaviour_is_unknown(tmp_path: Path) -> None:
    store = VerdictStore(str(tmp_path / "verdicts.sqlite"))
    store.put(b"1", judged("passed", "wrong_answer"))
    store.close()
    for text in ("passed wrong_answer", "", "0123456789abcdef", "passed 0123456789abcdef"):
        with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
            connection.execute("UPDATE verdicts SET verdicts = ?", (text,))
        connection.close()
        assert store.get(b"1", 2) is None


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    script = (
        "import sys; from maxk_lightning.rewards.verdict_store import VerdictStore\n"
        "from tests.rewards.test_verdict_store import judged\n"
        "store = VerdictStore(sys.argv[1])\n"
        "for i in range(300): store.put(f'{sys.argv[2]} {i}'.encode(), judged(*['passed'] * i))\n"
    )
    path = str(tmp_path / "verdicts.sqlite")
    writers = [subprocess.Popen([sys.executable, "-c", script, path, str(writer)]) for writer in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    store = VerdictStore(path)
    assert [store.get(f"{w} {i}".encode(), i) for w in range(3) for i in range(300)] == [
        judged(*["passed"] * i) for i in range(300)
    ] * 3


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(ValueError, match=r"cache_file is .*file is not a database"):
        VerdictStore(str(tmp_path / "file")).get(b"1", 1)
    with pytest.raises(ValueError, match=r"cache_file is .*: Not a directory|File exists"):
        VerdictStore(str(tmp_path / "file" / "below"))
