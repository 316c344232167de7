"""The kept predictions are what the code predicts, the page says what is kept, the other models are what they claim."""

import json
from pathlib import Path

import numpy as np
import prediction_study
import pytest
from prediction_models import OTHERS, fit_dirichlet, fit_zero_inflated
from study_report import filled

from maxk_lightning.evaluation.estimates import METRICS
from maxk_lightning.evaluation.prediction import predict
from tests.support.paths import ROOT

KEPT = json.loads((ROOT / prediction_study.KEPT).read_text())


def test_the_page_says_what_is_kept() -> None:
    page = (ROOT / prediction_study.PAGE).read_text()
    assert filled(page, prediction_study.blocks(KEPT)) == page


@pytest.mark.parametrize("place", [0, len(KEPT["predictions"]) // 2])
def test_a_kept_prediction_is_made_again(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kept = KEPT["predictions"][place]
    again = prediction_study.predictions_of(Path("docs/results") / kept["run"])
    (row,) = [row for row in again if row["metric"] == kept["metric"]]
    assert row["truth"] == kept["truth"]
    # Kept with four decimals; optimizers of other versions may end elsewhere on a flat top.
    assert row["values"] == pytest.approx(kept["values"], abs=2e-3)
    assert row["interval"] == pytest.approx(kept["interval"], abs=5e-3)


def test_a_kept_replay_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kept = KEPT["replays"][0]
    again = prediction_study.replayed(Path("docs/results") / kept["run"])
    assert (again["num_drawn"], again["is_covered"]) == (kept["num_drawn"], kept["is_covered"])
    assert again["width"] == pytest.approx(kept["width"], abs=5e-3)


def test_all_models_agree_where_there_is_nothing_to_predict() -> None:
    for rewards, best in (({"a": [0.0] * 4, "b": [0.0] * 4}, 0.0), ({"a": [1.0] * 4, "b": [1.0] * 4}, 1.0)):
        for name, model in OTHERS.items():
            for metric in METRICS:
                assert model(rewards, metric, 64) == pytest.approx([best, best]), name


def test_with_two_levels_the_dirichlet_is_the_beta() -> None:
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 2.0, 300)
    rewards = {str(i): rng.binomial(1, p, 16).astype(float).tolist() for i, p in enumerate(chances)}
    beta = predict(rewards, "max_at_k", [128], num_resamples=2).values_PK[:, 0]
    assert OTHERS["dirichlet"](rewards, "max_at_k", 128) == pytest.approx(beta, abs=1e-3)


def test_parameters_of_the_other_models_are_recovered() -> None:
    rng = np.random.default_rng(1)
    totals_P = np.full(6000, 64.0)
    chances_P = np.where(rng.random(6000) < 0.3, 0.0, rng.beta(2.0, 3.0, 6000))
    beta, share = fit_zero_inflated(rng.binomial(64, chances_P).astype(float), totals_P)
    assert share == pytest.approx(0.3, abs=0.03)
    assert [float(beta.a), float(beta.b)] == pytest.approx([2.0, 3.0], rel=0.1)
    parameters = [1.0, 0.4, 0.2]
    counts_PL = np.stack([rng.multinomial(32, chances) for chances in rng.dirichlet(parameters, 4000)])
    assert fit_dirichlet(counts_PL.astype(float)) == pytest.approx(parameters, rel=0.1)
