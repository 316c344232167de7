"""Two servers in threads, and engines on them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import VLLMServerEngine
from tests.support.served import Served

Make = Callable[..., VLLMServerEngine]


@pytest.fixture
def pair() -> Iterator[tuple[Served, Served]]:
    """Two servers of the built-in policy."""
    servers = Served(), Served()
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes engines on some servers, which have the built-in weights as version 1."""
    engines = []
    weights = load_model("builtin").state_dict()
    usual: dict[str, Any] = {"transfer": "file", "transfer_dir": str(tmp_path), "max_connections": 4}
    usual |= {"timeout_s": 60.0, "start_timeout_s": 2.0}

    def make(*servers: Served, **settings: object) -> VLLMServerEngine:
        engine = VLLMServerEngine(urls=[server.url for server in servers], **(usual | settings))
        engines.append(engine)
        engine.load_weights(weights.items(), 1)
        return engine

    yield make
    for engine in engines:
        engine.close()
