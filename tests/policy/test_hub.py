"""A policy of the hub: what a run says when the hub is not there, or has no such policy."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts a Python that imports transformers
CODE = """
from maxk_lightning.policy import load_model, load_tokenizer
for load in (load_tokenizer, load_model):
    try:
        load("owner/name")
    except ValueError as error:
        print(error)
"""


class NotFound(BaseHTTPRequestHandler):
    """Answers, and knows nothing."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def empty_hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _said(cache: Path, **variables: str) -> tuple[list[str], str]:
    """The sentences, and what the libraries wrote beside them."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(cache)} | variables
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


def test_a_missing_hub_is_told_at_once_in_one_sentence(tmp_path: Path) -> None:
    sentences, noise = _said(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")  # the discard port: nobody listens
    assert len(sentences) == 2
    for sentence in sentences:
        assert sentence.startswith("model.policy: owner/name is not in the local cache, and http://127.0.0.1:9 cannot")
        assert "Connection refused" in sentence
        assert "HF_HUB_OFFLINE=1" in sentence
    assert "Retrying" not in noise


def test_offline_is_told_likewise(tmp_path: Path) -> None:
    sentences, _ = _said(tmp_path, HF_HUB_OFFLINE="1")
    assert len(sentences) == 2
    assert all("(HF_HUB_OFFLINE is set)" in sentence for sentence in sentences)


def test_a_hub_without_the_policy_is_asked(tmp_path: Path, empty_hub: str) -> None:
    sentences, _ = _said(tmp_path, HF_ENDPOINT=empty_hub)
    assert len(sentences) == 2
    assert sentences[0].startswith("model.policy: cannot load the tokenizer of owner/name: ")
    assert sentences[1].startswith("model.policy: cannot load owner/name: ")
