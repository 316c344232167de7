"""The documentation site: it builds with strict links, fetches nothing, and generated pages are current."""

import ast
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import PAGES, name_of
from tests.support.paths import ROOT

LINK = re.compile(r"(?<!`)\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
MESSAGE = re.compile(r"^### (`{1,2})(.+)\1$", re.MULTILINE)
README_LINES = 150


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
def test_the_site_builds_with_strict_links_and_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        html = page.read_text("utf-8")
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]*\ssrc=\"(https?:[^\"]*)|<link[^>]*href=\"(https?:[^\"]*)", html
        )
        assert [address for pair in fetched for address in pair if address] == [], page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("reference/objectives.html", ["MaxAtK", "baseline", "ToldK"]),
        ("reference/rewards.html", ["UnitTestReward", "memory_limit_mb", "MathReward"]),
        ("reference/commands.html", ["num_samples", "until_width", "stop_when_sure"]),
        ("reference/metrics.html", ["train/zero_credit_fraction"]),
        ("reference/rollouts.html", ["VLLMServerEngine", "TransformersEngine", "timeout_s"]),
        ("files/configs/tiny.yaml.html", ["OffPolicyMaxAtK"]),
    ],
)
def test_the_reference_holds_what_it_is_for(page: str, words: list[str], site: Path) -> None:
    html = (site / page).read_text("utf-8")
    assert [word for word in words if word not in html] == []


@pytest.mark.slow
def test_the_page_of_the_configuration_is_current(tmp_path: Path) -> None:
    out = tmp_path / "configuration.md"
    script = [sys.executable, str(ROOT / "scripts" / "write_options.py"), "--out", str(out)]
    subprocess.run(script, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL, check=True)
    kept = (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8")
    assert "### `rollout.sampling.temperature`" in kept
    assert out.read_text("utf-8") == kept, "run scripts/write_options.py"


@pytest.mark.slow
def test_the_concepts_state_what_the_script_of_their_figures_prints(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "draw_concepts.py"), "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    rows = re.findall(r"^\| (before training|GRPO|`MaxAtK\(k=4\)`) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for name, cells in rows:
        line = next(row for row in printed.splitlines() if row.startswith(name.strip("`").removesuffix(" training")))
        values = dict(re.findall(r"(\d+): (\d\.\d+)", line))
        stated = [float(cell.strip("* ")) for cell in cells.split("|")]
        assert stated == [float(values[k]) for k in ("1", "4", "8", "128")], name
    for figure in re.findall(r"\(concepts/(\w+\.png)\)", page):
        assert (tmp_path / figure).stat().st_size > 5000


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_as_a_code_host_shows_them(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in {_anchor(title) for title in HEADING.findall(target.read_text("utf-8"))}, link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lists_and_tables_begin_after_a_blank_line(page: Path) -> None:
    """Code hosts do not need it, mkdocs does."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        begins = re.match(r"(- |\d\. |\|)", line)
        continues = re.match(r"(- |\d\. |\||\s|<!--)", before) or not before
        assert not begins or continues, f"{before}\n{line}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < README_LINES


def test_every_message_of_the_troubleshooting_page_is_one_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    messages = [message.strip() for _, message in MESSAGE.findall(page)]
    assert len(messages) > 30
    texts = _texts()
    assert [message for message in messages if not any(message in text for text in texts)] == []


def _texts() -> list[str]:
    """All strings of the program, with … for what is put in."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "maxk_lightning").rglob("*.py"))]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [_text(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"
    return re.sub(r"%(\.\d)?[a-z]", "…", text)


def _anchor(title: str) -> str:
    """A heading's anchor, as code hosts and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()).strip().replace(" ", "-")
