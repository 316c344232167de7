"""compare: what it writes says what the runs say, and a completion can do nothing to the page."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest

from maxk_lightning.commands.compare import compare
from maxk_lightning.evaluation.comparison import compare_benchmarks
from maxk_lightning.evaluation.estimates import METRICS
from maxk_lightning.evaluation.markdown import to_markdown
from maxk_lightning.evaluation.report import chosen_problems, html_report
from maxk_lightning.evaluation.runs import Run, write_statements
from maxk_lightning.types import Problem, TestCase
from tests.support.builders import make_run, make_sample, make_samples

ATTACK = '</pre><script>document.title = "attacked"</script><img src=x onerror="alert(1)">'


def make_runs(directory: Path) -> list[Run]:
    """Two runs of 8 problems x 4 samples; the second is better; one completion attacks the page."""
    rewards = {f"p{i}": [float(i > 5), 0.0, 0.25, 0.0] for i in range(8)}
    better = {f"p{i}": [float(i > 1), 0.0, 0.5, None if i == 7 else 1.0] for i in range(8)}
    base = make_run(directory / "base", make_samples(rewards))
    hostile = make_sample("p8", 0, 0.0, completion=ATTACK)
    trained = make_run(directory / "trained <b>", [*make_samples(better), hostile])
    problem = Problem(id="p1", prompt="Sort a < b", tests=(TestCase(input="", output=""),))
    write_statements([problem], base.path)
    return [base, trained]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compared")
    runs = make_runs(directory)
    compare(*(str(run.path) for run in runs), out=str(directory / "out"))
    return directory / "out"


class Outline(HTMLParser):
    """Checks that tags are balanced and collects what matters."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.counts: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def outline(output: Path) -> Outline:
    parser = Outline()
    parser.feed((output / "report.html").read_text())
    assert parser.stack == []
    return parser


def test_everything_promised_is_written(output: Path) -> None:
    names = {path.name for path in output.iterdir()}
    assert {"report.html", "report.md", "tables.csv", "tests.csv", "curves.png", "max_at_k.svg", "entropy.png"} <= names
    assert "solve_rates_trained_-b-.png" in names


def test_the_page_needs_nothing_from_outside(output: Path) -> None:
    for tag, name, value in outline(output).attributes:
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#"), (tag, name, value)


def test_links_lead_to_each_of_several_benchmarks(tmp_path: Path) -> None:
    names = ["easy", "hard & long"]
    runs = [
        make_run(tmp_path / name / run, make_samples({"x": [0.5], "y": [1.0]}), name)
        for name in names
        for run in ("base", "new")
    ]
    (tmp_path / "report.html").write_text(html_report(compare_benchmarks(runs), {name: [] for name in names}))
    attributes = outline(tmp_path).attributes
    assert [value for tag, name, value in attributes if (tag, name) == ("a", "href")] == [f"#{name}" for name in names]
    assert [value for tag, name, value in attributes if (tag, name) == ("h2", "id")] == names


def test_a_completion_cannot_add_markup(output: Path) -> None:
    parsed = outline(output)
    assert parsed.counts["script"] == 1
    assert "img" not in parsed.counts
    assert "b" not in parsed.counts  # nor can the name of a run
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "&lt;script&gt;document.title" in (output / "report.html").read_text()


def test_statement_verdicts_and_notes_are_on_the_page(output: Path) -> None:
    text = (output / "report.html").read_text()
    assert "Sort a &lt; b" in text
    assert "wrong answer x 1" in text
    assert "1 samples could not be scored" in text
    assert "1 problems are in only one of base and trained" in text


def test_markdown_and_csv_hold_the_same_numbers(output: Path) -> None:
    text = (output / "report.md").read_text()
    with (output / "tables.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "here"]
    assert {row["method"] for row in rows} == {"base", "trained <b>"}
    for row in rows:
        assert f"{float(row['value']):.3f}" in text
    with (output / "tests.csv").open(newline="") as file:
        tests = list(csv.DictReader(file))
    assert [(test["metric"], test["k"]) for test in tests] == [
        (metric, k) for metric in ("max@k", "pass@k") for k in ("1", "2", "4")
    ]
    assert all(f"{float(test['difference']):+.3f}" in text for test in tests)


def test_nothing_is_best_among_runs_on_different_problems(tmp_path: Path) -> None:
    a, b = (
        make_run(tmp_path / name, make_samples({"x": [reward], "y": [0.5]}))
        for name, reward in (("a", 0.0), ("b", 1.0))
    )
    fewer = make_run(tmp_path / "fewer", make_samples({"x": [1.0]}))
    (same,), (different,) = compare_benchmarks([a, b]), compare_benchmarks([a, b, fewer])
    assert "| b | **0.750** |" in str(same.tables[0])
    assert "Best in bold" in to_markdown([same])
    assert "**" not in str(different.tables[0])
    assert "No best is marked" in to_markdown([different])
    assert "No best is marked" in html_report([different], {"bench": []})


def test_predictions_are_drawn_and_said_but_are_in_no_table(tmp_path: Path) -> None:
    rewards = {f"p{i}": [float(i > 5), 0.0, 0.25, 0.0] for i in range(8)}
    predicting = make_run(tmp_path / "predicting", make_samples(rewards), predict_up_to=1024)
    measured = make_run(tmp_path / "measured", make_samples(rewards))
    compare(str(measured.path), str(predicting.path), out=str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("predicted and not measured.</figcaption>") == len(METRICS)
    assert "Values above k = 4 are predicted" in page
    assert "k=8" not in page
    compare(str(measured.path), out=str(tmp_path / "alone"))
    assert "predicted" not in (tmp_path / "alone" / "report.html").read_text()


def test_different_correct_behaviours_have_a_table_and_no_verdict(tmp_path: Path) -> None:
    said = [["x", "x", "x", "y"], ["x", "x", None, "x"]]
    runs = [
        make_run(tmp_path / name, [make_sample("p", i, 1.0, behaviour=each) for i, each in enumerate(group)])
        for name, group in zip(("varied", "alike"), said, strict=True)
    ]
    (comparison,) = compare_benchmarks([*runs, make_run(tmp_path / "unknown", make_samples({"p": [1.0, 0.0]}))])
    *_, counted = comparison.tables
    assert (counted.title, counted.ks) == ("bench, distinct@k", (1, 2, 4))
    values = {row.name: [row.points[k].value for k in counted.ks] for row in counted.rows}
    assert values == {"varied": pytest.approx([1.0, 1.5, 2.0]), "alike": pytest.approx([0.75, 1.0, 1.0])}
    assert {metric for metric, _ in comparison.tests} == set(METRICS)
    assert "| varied | **1.000** | **1.500** | **2.000** |" in to_markdown([comparison])
    (without,) = compare_benchmarks([runs[1]])
    assert [table.metric for table in without.tables] == list(METRICS)


def test_problems_that_tell_most_are_shown_first(tmp_path: Path) -> None:
    base = make_run(tmp_path / "base", make_samples({"same": [1.0], "gained": [0.0], "never": [0.0]}))
    new = make_run(tmp_path / "new", make_samples({"same": [1.0], "gained": [1.0], "never": [0.5]}))
    (comparison,) = compare_benchmarks([base, new])
    assert chosen_problems(comparison) == ["gained", "same", "never"]


def test_conclusions_name_better_and_worse(tmp_path: Path) -> None:
    base = make_run(tmp_path / "base", make_samples({str(i): [0.5, 0.5] for i in range(20)}))
    # Better on average, worse at its best: what max@k is there to see.
    mixed = make_run(tmp_path / "mixed", make_samples({str(i): [0.6, 0.1 + i / 100] for i in range(20)}))
    (comparison,) = compare_benchmarks([mixed, base])
    assert comparison.baseline.name == "mixed"
    sentence = comparison.conclusions()[0]
    assert sentence.startswith("base: max@1 +")
    assert "significantly better than mixed at k = 1 and significantly worse than mixed at k = 2" in sentence


def test_a_gain_everywhere_is_said_in_few_words(tmp_path: Path) -> None:
    base = make_run(tmp_path / "base", make_samples({str(i): [0.1 + i / 100] * 4 for i in range(20)}))
    better = make_run(tmp_path / "better", make_samples({str(i): [0.5 + i / 50] * 4 for i in range(20)}))
    assert compare_benchmarks([base, better])[0].conclusions()[0].endswith("better than base at every k from 1 to 4")


def test_the_baseline_can_be_named_and_must_be_everywhere(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, make_samples({"x": [0.5]})) for name in "ab")
    elsewhere = make_run(tmp_path / "c", make_samples({"x": [0.5]}), benchmark="other")
    assert compare_benchmarks([a, b], baseline="b")[0].baseline is b
    with pytest.raises(ValueError, match="must be one of a, b"):
        compare_benchmarks([a, b], baseline="z")
    with pytest.raises(ValueError, match="a was not evaluated on other"):
        compare_benchmarks([a, b, elsewhere])


def test_runs_on_other_problems_of_the_same_ids_are_refused(tmp_path: Path) -> None:
    """Ids that are the numbers of rows name other problems in another split, or when a row was deleted."""
    runs = [make_run(tmp_path / name, make_samples({"0": [1.0], "1": [0.0]})) for name in ("a", "b")]
    for run, statement in zip(runs, ("What is 2 + 3?", "Name a colour."), strict=True):
        problems = [Problem(id="0", prompt=statement, tests=()), Problem(id="1", prompt="Same.", tests=())]
        write_statements(problems, run.path)
    with pytest.raises(
        ValueError, match=r"a and .*b are evaluations of different problems on bench: .* id '0' differs"
    ):
        compare_benchmarks(runs)


def test_runs_without_a_shared_problem_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", make_samples({"x": [0.5]}))
    b = make_run(tmp_path / "b", make_samples({"y": [0.5]}))
    with pytest.raises(ValueError, match="a and b share no problem of bench"):
        compare(str(a.path), str(b.path), out=str(tmp_path / "out"))
