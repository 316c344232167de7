"""What a run leaves in TensorBoard: every tag is explained, runs compare in HPARAMS, resuming adds nothing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from maxk_lightning.callbacks.glossary import GLOSSARY
from maxk_lightning.callbacks.hyperparameters import NUMBERS, TEXTS, metric_tags
from maxk_lightning.types import MissingCause
from tests.support.paths import ROOT
from tests.support.tiny_run import run

ELSEWHERE: dict[str, str] = {
    # Tags of `metrics.md` that the run below cannot log: tag -> what logs it.
    "train/entropy_coef": "test_an_adaptive_bonus_follows_its_rule_and_resumes",
    "val/realised_max_at_k/K": "test_two_ranks_log_what_one_logs",
    **dict.fromkeys(
        ("train/distinct_correct", "val/distinct_correct", "test/distinct_correct"),
        "test_rollout_metrics_are_the_sums_of_their_parts_and_start_again_after_reset",
    ),
    "train/tempering": "test_the_power_of_the_others_ratios_is_logged",
    **{
        f"{stage}/rewards/NAME{suffix}": "test_every_reward_function_is_logged_by_name"
        for stage in ("train", "val", "test")
        for suffix in ("", "_std", "_missing")
    },
}


@pytest.fixture(scope="module")
def logged(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and tested run, in a directory where others can stand beside it."""
    root = tmp_path_factory.mktemp("runs") / "max_at_k"
    objective = {"model.objective": "MaxAtK", "model.objective.k": 2, "model.objective.baseline": "loo1"}
    run("fit", root, random_policy, validate_before_fit="true", **objective, **{"data.num_ppo_iterations": 1})
    run("test", root, random_policy)
    return root


@pytest.fixture(scope="module")
def runs(logged: Path, random_policy: str) -> Path:
    """Two finished runs."""
    run("fit", logged.parent / "grpo", random_policy, **{"model.objective": "GRPO", "seed_everything": 7})
    return logged.parent


def tags(root: Path) -> dict[str, list[str]]:
    """Kind -> tags of a run."""
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    found = accumulator.Tags()
    texts = [tag.removesuffix("/text_summary") for tag in found["tensors"] if tag.endswith("/text_summary")]
    return {"scalars": found["scalars"], "images": found["images"], "texts": texts}


def explained_tags() -> list[str]:
    """Tags in the first column of the tables of `metrics.md`."""
    rows = [line.split(" | ")[0] for line in GLOSSARY.read_text().splitlines() if line.startswith("| `")]
    tags_of_rows = [tag for row in rows for tag in re.findall(r"`([^`]+)`", row)]
    stages = ("train", "val", "test")
    return [
        tag.replace("*", stage) for tag in tags_of_rows for stage in (stages if tag.startswith("*/") else stages[:1])
    ]


def pattern(explained: str) -> str:
    return re.escape(explained).replace("/K", r"/\d+").replace("CAUSE", f"({'|'.join(get_args(MissingCause))})")


def test_every_logged_tag_is_explained_and_every_explained_tag_is_logged(logged: Path) -> None:
    found = {tag for kind in tags(logged).values() for tag in kind}
    explained = explained_tags()
    assert len(explained) == len(set(explained))
    unexplained = {tag for tag in found if not any(re.fullmatch(pattern(each), tag) for each in explained)}
    assert not unexplained, "add a row for each of them to maxk_lightning/callbacks/metrics.md"
    never = {each for each in explained if not any(re.fullmatch(pattern(each), tag) for tag in found)}
    assert never == set(ELSEWHERE), "rename or delete their rows in metrics.md, or say in ELSEWHERE what logs them"


def test_every_row_of_the_glossary_is_complete() -> None:
    for line in GLOSSARY.read_text().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 4, line
            assert max(map(len, cells[1:])) <= 64, f"longer explanations stand in the list below the table: {line}"
            assert cells[1], line
            if cells[0].startswith(("`*/", "`train/", "`val/", "`time/")):
                assert cells[3], f"what is healthy? {line}"


def test_the_glossary_is_written_once_per_run(logged: Path) -> None:
    accumulator = EventAccumulator(str(logged / "tensorboard"), size_guidance={"tensors": 0})
    accumulator.Reload()
    (event,) = accumulator.Tensors("glossary/text_summary")
    assert event.tensor_proto.string_val[0].decode() == GLOSSARY.read_text()


def test_the_curve_stands_at_the_step_of_its_scalars(logged: Path) -> None:
    accumulator = EventAccumulator(str(logged / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    steps = [event.step for event in accumulator.Scalars("val/reward")]
    assert [event.step for event in accumulator.Images("val/max_at_k_curve")] == steps


class Hparams:
    """The backend of TensorBoard's HPARAMS page on a directory of runs."""

    def __init__(self, logdir: Path) -> None:
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(logdir))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(logdir))
        self.context = backend_context.Context(SimpleNamespace(data_provider=provider))  # type: ignore[no-untyped-call]

    def table(self) -> dict[str, dict[str, Any]]:
        """Run -> column -> value."""
        request = RequestContext()
        experiment = get_experiment.Handler(request, self.context, "", api_pb2.GetExperimentRequest()).run()  # type: ignore[no-untyped-call]
        columns = [api_pb2.ColParams(hparam=info.name, include_in_result=True) for info in experiment.hparam_infos]
        columns += [api_pb2.ColParams(metric=info.name, include_in_result=True) for info in experiment.metric_infos]
        asked = api_pb2.ListSessionGroupsRequest(
            col_params=columns, start_index=0, slice_size=100, allowed_statuses=list(range(4))
        )
        args = (request, self.context, "", asked)
        found = list_session_groups.Handler(*args).run()  # type: ignore[no-untyped-call]
        assert sorted(info.name for info in experiment.hparam_infos) == sorted([*TEXTS, *NUMBERS])
        assert [info.name.tag for info in experiment.metric_infos] == metric_tags(4)
        return {group.name: dict(_cells(group)) for group in found.session_groups}


def _cells(group: Any) -> Iterator[tuple[str, Any]]:
    assert len(group.sessions) == 1
    for name, value in group.hparams.items():
        yield name, getattr(value, value.WhichOneof("kind"))
    for metric in group.metric_values:
        yield metric.name.tag, metric.value
    yield "status", api_pb2.Status.Name(group.sessions[0].status)


def last_scalars(root: Path) -> dict[str, float]:
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag)[-1].value for tag in accumulator.Tags()["scalars"]}


@pytest.mark.slow
def test_runs_compare_in_the_hparams_table_with_their_final_numbers(runs: Path, random_policy: str) -> None:
    table = Hparams(runs).table()
    assert set(table) == {"max_at_k/tensorboard", "grpo/tensorboard"}
    row, other = table["max_at_k/tensorboard"], table["grpo/tensorboard"]
    expected = {
        "policy": random_policy, "objective": "MaxAtK", "baseline": "loo1", "k": 2.0, "n": 4.0, "lr": 5e-6,
        "num_ppo_iterations": 1.0, "seed": 42.0, "max_epochs": 2.0, "reward": "LengthReward",
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert (other["objective"], other["seed"], other["num_ppo_iterations"]) == ("GRPO", 7.0, 3.0)
    assert "k" not in other
    for name in table:
        final = last_scalars(runs / name.removesuffix("/tensorboard"))
        for tag in metric_tags(4):
            assert table[name][tag] == pytest.approx(final[tag], rel=1e-6), (name, tag)
        assert table[name]["status"] == "STATUS_SUCCESS"


@pytest.mark.slow
def test_a_killed_run_is_in_the_table_too(random_policy: str, tmp_path: Path) -> None:
    reward = {
        "rollout.reward": "tests.support.fakes.DeadlyReward",
        "rollout.reward.num_rollouts": 3,
    }  # train, val, train
    code = (
        f"from pathlib import Path; from tests.support.tiny_run import run; run('fit', Path('killed'), **{reward!r}, "
    )
    code += f"policy={random_policy!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    row = Hparams(tmp_path).table()["killed/tensorboard"]
    assert (row["objective"], row["k"], row["status"]) == ("MaxAtK", 2.0, "STATUS_UNKNOWN")


@pytest.mark.slow
def test_a_resumed_run_is_one_row_and_has_one_glossary(random_policy: str, tmp_path: Path) -> None:
    root = tmp_path / "resumed"
    run("fit", root, random_policy)
    run("fit", root, random_policy, ckpt_path=root / "checkpoints" / "last.ckpt", **{"trainer.max_epochs": 3})
    table = Hparams(tmp_path).table()
    assert set(table) == {"resumed/tensorboard"}
    assert table["resumed/tensorboard"]["val/reward"] == pytest.approx(last_scalars(root)["val/reward"], rel=1e-6)
    accumulator = EventAccumulator(str(root / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    assert len(accumulator.Tensors("glossary/text_summary")) == 1
    assert len(accumulator.Scalars("val/reward")) == 3


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    """A TensorBoard server on a free port that shows both runs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        addresses = (re.search(r"http://127\S+", line) for line in server.stderr)
        yield next(address[0] for address in addresses if address)
        server.terminate()


ACROSS_SHADOWS = """
const found = [];
const walk = (root) => root.querySelectorAll("*").forEach((element) => {
  if (element.matches(arguments[0])) found.push(element);
  if (element.shadowRoot) walk(element.shadowRoot);
});
walk(document);
return found;
"""


def open_page(browser: Any, url: str, page: str) -> None:
    metrics = {"width": 1366, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get("about:blank")  # the same address with another fragment would not load anew
    browser.get(f"{url}#{page}")


def wait(browser: Any, condition: Callable[[], object], message: str) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(browser, 60, ignored_exceptions=(StaleElementReferenceException,))
    return waiting.until(lambda _: condition(), message)


def text(browser: Any) -> str:
    return str(browser.find_element("tag name", "body").text)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("tag", ["train/reward", "train/loss", "val/max_at_k/4"])
def test_scalars_are_on_the_page_with_their_last_values(browser: Any, url: str, runs: Path, tag: str) -> None:
    open_page(browser, url, "timeseries")
    boxes = wait(
        browser,
        lambda: browser.execute_script(ACROSS_SHADOWS, "input[placeholder='Filter tags (regex)']"),
        "no box to filter tags by",
    )
    boxes[0].send_keys(f"^{tag}$")
    row = re.compile(
        r"grpo/tensorboard\n(?:\S+\n)?(\S+)\n(\d+)\n"
    )  # smoothed value unless there is one point only, value, step

    def shown() -> str | None:
        _, _, cards = text(browser).partition("Tags matching filter")
        found = row.search(cards)
        return found[1] if found else None

    wait(browser, shown, f"no card of {tag}")
    # The page rounds to four decimals.
    assert float(shown() or "nan") == pytest.approx(last_scalars(runs / "grpo")[tag], abs=5.1e-5)


@pytest.mark.browser
@pytest.mark.slow
def test_the_curve_of_each_run_is_a_picture_on_the_page(browser: Any, url: str) -> None:
    open_page(browser, url, "images")

    def pictures() -> list[tuple[int, int]]:
        found = browser.execute_script(ACROSS_SHADOWS, "img[src*='plugin/images']")
        return [(image.get_property("naturalWidth"), image.get_property("naturalHeight")) for image in found]

    wait(browser, lambda: len(pictures()) == 2 and min(map(min, pictures())) > 300, "not two drawn pictures")
    assert text(browser).count("tag: val/max_at_k_curve") == 2


@pytest.mark.browser
@pytest.mark.slow
def test_samples_and_glossary_are_on_the_text_page(browser: Any, url: str) -> None:
    open_page(browser, url, "text")
    wait(browser, lambda: text(browser).count("Is it learning?") == 2, "no glossary of each run")
    assert browser.execute_script(ACROSS_SHADOWS, "table th"), "the glossary's tables are not rendered"
    assert "tag: train/samples/text_summary" in text(browser)
    assert "reward 0." in text(browser)


@pytest.mark.browser
@pytest.mark.slow
def test_the_hparams_page_shows_settings_and_final_numbers(browser: Any, url: str, runs: Path) -> None:
    open_page(browser, url, "hparams")
    for run_name, settings in {"grpo": ["GRPO"], "max_at_k": ["2.0000", "MaxAtK"]}.items():
        final = last_scalars(runs / run_name)
        row = [*settings, *(f"{final[tag]:#.5g}" for tag in metric_tags(4))]

        def is_shown(run_name: str = run_name, row: list[str] = row) -> bool:
            _, _, cells = text(browser).partition(f"{run_name}/tensorboard\n")
            words = cells.split("\n")[:10]
            return [word for word in words if word in row] == row

        wait(browser, is_shown, f"no row of {run_name} with {row}")
