"""The kept runs on the real model hold what docs/stability.md and the defaults claim."""

import math
from pathlib import Path

import pytest
import stability
from study_report import filled

RESULTS = {(result["arm"], result["learning_rate"]): result for result in stability.read_results(stability.RESULTS)}


def test_every_run_is_there_and_the_page_says_what_they_say() -> None:
    arms = (*stability.BOUNDED, *stability.UNBOUNDED)
    assert set(RESULTS) == {(arm, rate) for arm in arms for rate in stability.LEARNING_RATES}
    page = stability.PAGE.read_text()
    assert filled(page, {"table": stability.table(list(RESULTS.values()))}) == page


@pytest.mark.parametrize("rate", stability.LEARNING_RATES)
@pytest.mark.parametrize("arm", stability.BOUNDED)
def test_no_bounded_objective_breaks(arm: str, rate: float) -> None:
    result = RESULTS[arm, rate]
    assert result["exit_status"] == 0
    assert len(result["steps"]) == 5 * stability.NUM_PPO_ITERATIONS
    for step in result["steps"]:
        assert abs(step["loss"]) < stability.LARGEST
        assert step["grad_norm"] < stability.LARGEST
        assert step["skipped_steps"] == 0
    assert {step["log_ratio_std"] for step in result["steps"][:: stability.NUM_PPO_ITERATIONS]} == {0.0}


def test_a_row_says_whether_a_run_held(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,train/loss,train/grad_norm,train/log_ratio_std,train/zero_credit_fraction,train/skipped_steps,"
        "train/credit_max,train/engine_gap,rollout/age\n"
        "0,,,,,,,,0.0\n0,0.1,0.5,0.0,0.75,0.0,0.2,0.03,\n1,-0.2,0.6,1.5,0.75,0.0,0.2,0.03,\n2,0.3,inf,2.5,1.0,1.0,0.2,0.03,\n"
    )
    steps = stability.read_steps(tmp_path / "metrics.csv")
    assert [step["grad_norm"] for step in steps] == [0.5, 0.6, math.inf]
    broken = {"arm": "grpo", "learning_rate": 1e-5, "exit_status": 0, "steps": steps}
    held = broken | {"steps": [step | {"grad_norm": 1.0, "skipped_steps": 0.0} for step in steps]}
    rows = stability.table([broken, held]).splitlines()[2:]
    assert rows[0] == "| grpo | 1e-05 | 3 | 2 | 0.3 | inf | 0 | 2.50 to 2.50 | 0.2 | 1 | **no** |"
    assert rows[1] == "| grpo | 1e-05 | 3 | 2 | 0.3 | 1 | 0 | 2.50 to 2.50 | 0.2 | 0 | yes |"
