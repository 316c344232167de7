"""`best --serve`: the real command, asked over HTTP and by a real browser."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from maxk_lightning.commands.best.address import Address
from maxk_lightning.commands.best.jobs import MAX_WAITING, FullError, Job, Jobs
from maxk_lightning.commands.best.server import MAX_BODY_BYTES
from maxk_lightning.data import Builtin
from tests.support.paths import ROOT
from tests.support.runs import ENVIRONMENT, listen_to_interrupts

(PROBLEM,) = Builtin("test", limit=1, num_public=2).load()
QUESTION = {
    "prompt": PROBLEM.prompt,
    "tests": [f"{test.input.strip()} => {test.output.strip()}" for test in PROBLEM.tests[:2]],
    "num_samples": 6,
}
BEST = [sys.executable, "-m", "maxk_lightning", "best", "--policy", "builtin"]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Page:
    """A server that runs."""

    process: "subprocess.Popen[str]"
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """What stands in the address of its page."""
        return f"{self.host}:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of a reply; a body that is no string or bytes goes as JSON."""
        sent = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        connection.request(method, path, sent, JSON if headers is None else headers)
        reply = connection.getresponse()
        return reply.status, reply.read(), dict(reply.getheaders())

    def events(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """What happens to a request that is accepted."""
        status, body, _ = self.ask("POST", "/search", question)
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]

    def refused(self, *request: Any, **more: Any) -> tuple[int, str]:
        """Status and sentence of a request that is not."""
        status, body, _ = self.ask(*request, **more)
        return status, json.loads(body)["error"]


def _start(*options: str) -> Page:
    command = [*BEST, "--serve", "0", "--num_samples", "8", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, preexec_fn=listen_to_interrupts
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.search(r"open http://([\d.]+):(\d+)", line)
    assert match is not None, line
    return Page(process, match[1], int(match[2]))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    started = _start()
    yield started
    started.process.kill()
    started.process.wait()


def test_only_this_machine_is_let_in(page: Page) -> None:
    assert page.host == "127.0.0.1"


def test_candidates_come_as_they_end_and_one_is_chosen(page: Page) -> None:
    events = page.events(QUESTION)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "sampling"
    assert kinds[-1] == "found"
    assert kinds.count("candidate") == kinds.count("tests") == 6
    for index in range(6):
        of_one = [event["event"] for event in events if event.get("index") == index]
        assert of_one == ["candidate", "tests"]
    texts = {event["index"]: event["text"] for event in events if event["event"] == "candidate"}
    assert sorted(texts) == list(range(6))
    found = events[-1]
    answer = found["answer"]
    assert answer["completion"] == texts[answer["index"]]
    assert answer["num_public_passed"] == max(verdicts.count("passed") for verdicts in found["verdicts"])
    assert len(found["clusters"]) == len(found["verdicts"]) == 6


def test_public_tests_are_run_though_the_reward_counts_hidden_ones() -> None:
    hidden = _start("--rollout.reward", "maxk_lightning.rewards.UnitTestReward", "--rollout.reward.tests", "hidden")
    try:
        last = hidden.events({**QUESTION, "num_samples": 2})[-1]
    finally:
        hidden.process.kill()
        hidden.process.wait()
    assert [len(verdicts) for verdicts in last["verdicts"]] == [2, 2]


def test_the_same_seed_gives_the_same_and_another_another(page: Page) -> None:
    def texts(seed: int) -> dict[int, str]:
        events = page.events({**QUESTION, "seed": seed})
        return {event["index"]: event["text"] for event in events if event["event"] == "candidate"}

    assert texts(1) == texts(1) != texts(2)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not JSON (Expecting property name"),
        (b"[1]", "must be a JSON object"),
        (b"\xff", "not UTF-8 text"),
        ({}, "`prompt` is missing"),
        ({"prompt": 7}, "`prompt` must be str"),
        ({"prompt": "  "}, "`prompt` is empty"),
        ({"prompt": "\ud800"}, "`prompt`"),
        ({"prompt": "a", "tests": "1 => 2"}, "`tests` must be list"),
        ({"prompt": "a", "tests": [1]}, "`tests[0]` must be str"),
        ({"prompt": "a", "tests": ["1 2"]}, "`tests[0]` is '1 2', must be INPUT => OUTPUT"),
        ({"prompt": "a", "tests": ["1 => 2"] * 33}, "`tests` holds 33, may hold 32"),
        ({"prompt": "a", "num_samples": 9}, "`num_samples` is 9, must be a whole number from 1 to 8"),
        ({"prompt": "a", "num_samples": True}, "`num_samples` is True"),
        ({"prompt": "a", "seed": -1}, "`seed` is -1"),
        ({"prompt": "a", "size": 1}, "size"),
        ({"prompt": "word " * 9000}, "no problem has a prompt of at most 512 tokens"),
    ],
    ids=range(16),
)
def test_a_wrong_request_is_told_what_is_wrong(page: Page, body: Any, sentence: str) -> None:
    status, reply, _ = page.ask("POST", "/search", body)
    told = [json.loads(line) for line in reply.splitlines()]
    assert sentence in told[-1]["error"]
    assert status == (200 if "tokens" in sentence else 400)  # only the tokenizer knows how long it is


def test_limits_and_foreign_pages(page: Page) -> None:
    too_long = b" " * (MAX_BODY_BYTES + 1)
    assert page.refused("POST", "/search", too_long)[0] == 413
    assert page.refused("POST", "/search", b"{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert page.refused("POST", "/search", b"{}", headers={**JSON, "Transfer-Encoding": "chunked"})[0] == 411
    assert page.refused("POST", "/search", QUESTION, headers={**JSON, "Origin": "http://evil.example"})[0] == 403
    assert page.refused("POST", "/search", QUESTION, headers={**JSON, "Origin": "null"})[0] == 403
    for path in ("/", "/settings"):
        assert page.refused("GET", path, headers={"Host": "evil.example"})[0] == 403
    assert page.refused("GET", "/../answers.py")[0] == 404
    assert page.refused("POST", "/", {})[0] == 404
    assert page.ask("PUT", "/search", {})[0] == 501
    assert page.ask("GET", "/settings", headers={"Host": f"localhost:{page.port}"})[0] == 200


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/settings", "/nothing"])
def test_every_reply_forbids_foreign_code(page: Page, path: str) -> None:
    _, _, headers = page.ask("GET", path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_client_that_says_nothing_keeps_nobody_waiting(page: Page) -> None:
    with socket.create_connection((page.host, page.port)) as silent:
        silent.sendall(b"POST /search HTTP/1.1\r\nHost:")
        assert page.ask("GET", "/settings")[0] == 200


def test_who_leaves_ends_the_sampling(page: Page) -> None:
    connection = http.client.HTTPConnection(page.host, page.port, timeout=60)
    connection.request("POST", "/search", json.dumps({**QUESTION, "num_samples": 8}), JSON)
    connection.getresponse().readline()
    connection.close()
    assert page.events({**QUESTION, "num_samples": 1})[-1]["event"] == "found"


def test_too_many_that_wait_are_refused() -> None:
    jobs, job = Jobs(), Job(problem=PROBLEM, num_samples=1)
    for _ in range(MAX_WAITING):
        jobs.add(Job(problem=PROBLEM, num_samples=1))
    with pytest.raises(FullError):
        jobs.add(job)
    jobs.take().is_given_up.set()
    jobs.add(job)
    assert job.events.get_nowait() == {"event": "waiting", "before": MAX_WAITING}


@pytest.mark.parametrize("text", ["", "host", "a:b", "1:2:3", "65536", "http://localhost:80", "localhost:"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"--serve is .*, must be "):
        Address.parse(text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--serve", "0", "--prompt", "a"], "give either --problems or --prompt or --serve"),
        (["--serve", "0", "--test", "1 => 2"], "--test belongs to --prompt"),
        (["--serve", "0", "--out", "x"], "the page of --serve writes nothing"),
        (["--serve", "nowhere"], "--serve is 'nowhere'"),
    ],
)
def test_options_that_exclude_each_other(options: list[str], sentence: str) -> None:
    done = subprocess.run([*BEST, *options], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_an_address_that_is_taken_is_told_and_ctrl_c_ends_it() -> None:
    running = _start()
    try:
        command = [*BEST, "--serve", str(running.port)]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "--serve: 127.0.0.1" in done.stderr
        running.process.send_signal(signal.SIGINT)
        out, _ = running.process.communicate(timeout=60)
        assert running.process.returncode == 0
        assert "ended" in out
    finally:
        running.process.kill()
        running.process.wait()


def _until(condition: Any, what: str, timeout_s: float = 120.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(what)


@pytest.mark.browser
def test_the_page_in_a_browser(page: Page, browser: Any) -> None:
    browser.get(f"http://{page.netloc}/")
    button = browser.find_element("id", "sample")
    _until(button.is_enabled, "the settings did not come")
    assert "builtin" in browser.find_element("id", "about").text
    browser.find_element("id", "prompt").send_keys(PROBLEM.prompt)
    browser.find_element("id", "tests").send_keys("\n".join(QUESTION["tests"]))  # type: ignore[arg-type]
    button.click()
    _until(lambda: browser.find_elements("css selector", "#groups details"), "no candidate appeared")
    _until(lambda: browser.find_element("id", "chosen").is_displayed(), "none was chosen")
    assert len(browser.find_elements("css selector", "#groups details")) == 8
    how = browser.find_element("id", "how").text
    assert re.search(r"among 8; it passes \d of 2 public tests; confidence \d+ %", how), how
    assert "the chosen one's" in browser.find_element("css selector", "#groups h3").text
    chosen = browser.find_element("css selector", "#groups details.is-chosen")
    assert re.search(r"\d of 2 tests", chosen.text)
    chosen.find_element("css selector", "summary").click()
    program = browser.find_element("css selector", "#answer pre").text
    _until(lambda: program in chosen.text, "its card does not show the program")
    assert browser.find_elements("css selector", "#answer .keyword")
    for width in (1280, 390):
        browser.set_window_size(width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), width
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


ATTACK = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\n"
    "```python\n# </code></pre><script>window.hacked = 1</script>\n```"
)


@pytest.mark.browser
def test_what_a_candidate_writes_is_only_ever_text(page: Page, browser: Any) -> None:
    browser.get(f"http://{page.netloc}/")
    browser.execute_script(
        """begin({tests: [], num_samples: 1});
        handlers.candidate({index: 0, text: arguments[0], mean_logprob: -1});
        handlers.found({answer: {index: 0, how: arguments[0], confidence: 1, num_public: 0, num_candidates: 1},
                        clusters: [1], verdicts: []});
        document.querySelector("#groups details").open = true;""",
        ATTACK,
    )
    _until(lambda: "window.hacked" in browser.find_element("id", "groups").text, "the candidate is not shown")
    assert browser.find_elements("css selector", "main script, main img") == []
    assert browser.execute_script("return window.hacked") is None
    assert ATTACK.splitlines()[0] in browser.find_element("id", "how").text
