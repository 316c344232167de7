"""report.html in headless Chromium: fits a laptop and a phone, sorts by clicks and keys, runs no foreign code."""

from pathlib import Path

import pytest

from tests.evaluation.test_report import ATTACK, make_runs

pytestmark = pytest.mark.browser
SIZES = {"laptop": (1366, 768), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    from maxk_lightning.commands.compare import compare

    directory = tmp_path_factory.mktemp("report")
    compare(*(str(run.path) for run in make_runs(directory)), out=str(directory / "out"))
    return (directory / "out" / "report.html").as_uri()


def show(browser, page: str, size: str) -> None:  # type: ignore[no-untyped-def]
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)


def column(table, index: int) -> list[str]:  # type: ignore[no-untyped-def]
    return [row.find_elements("tag name", "td")[index].text for row in table.find_elements("css selector", "tbody tr")]


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_the_screen(browser, page: str, size: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    show(browser, page, size)
    wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wider) <= 0, "the page must not scroll sideways; only tables do, in their own boxes"
    for drawing in browser.find_elements("tag name", "svg"):
        assert 250 <= drawing.size["width"] <= SIZES[size][0]
        assert drawing.size["height"] >= 150
    for paragraph in browser.find_elements("css selector", "p, li"):
        assert float(paragraph.value_of_css_property("font-size").removesuffix("px")) >= 14
    browser.save_screenshot(str(tmp_path / f"{size}.png"))


@pytest.mark.parametrize("size", SIZES)
def test_clicking_a_heading_sorts_down_then_up(browser, page: str, size: str) -> None:  # type: ignore[no-untyped-def]
    show(browser, page, size)
    table = browser.find_element("css selector", ".tall table")
    headings = table.find_elements("css selector", "th button")
    rates = [index for index, heading in enumerate(headings) if heading.text.startswith("solve rate, base")]
    for expected, order in ((True, "descending"), (False, "ascending")):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", headings[rates[0]])
        headings[rates[0]].click()
        shown = column(table, rates[0])
        numbers = [float(text) for text in shown if text != "-"]
        assert numbers == sorted(numbers, reverse=expected)
        assert shown[-1] == "-", "a problem that a run does not have stays last either way"
        assert table.find_elements("tag name", "th")[rates[0]].get_attribute("aria-sort") == order
    assert len({*column(table, 0)}) == 9


def test_names_sort_naturally_and_by_keyboard(browser, page: str) -> None:  # type: ignore[no-untyped-def]
    show(browser, page, "laptop")
    table = browser.find_element("css selector", ".tall table")
    button = table.find_element("css selector", "th button")
    browser.execute_script("arguments[0].focus()", button)
    from selenium.webdriver.common.keys import Keys

    button.send_keys(Keys.ENTER)
    assert column(table, 0) == [f"p{i}" for i in range(9)]
    button.send_keys(Keys.SPACE)
    assert column(table, 0) == [f"p{i}" for i in reversed(range(9))]


def test_programs_open_with_statement_and_verdicts_and_run_nothing(browser, page: str) -> None:  # type: ignore[no-untyped-def]
    show(browser, page, "phone")
    for details in browser.find_elements("tag name", "details"):
        browser.execute_script("arguments[0].open = true", details)
    text = browser.find_element("tag name", "main").text
    assert ATTACK in text
    assert "Sort a < b" in text
    assert "wrong answer x 1" in text
    assert browser.title == "Best-of-N: base / trained <b>"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
