"""Fixtures that several test files use."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from tests.support.paths import ROOT

VLLM = ("tests/rollouts/engines/test_vllm", "tests/shell/test_vllm_fit.py", "tests/shell/test_real_model.py")
"Tests of engines that take gigabytes, and look whether their processes are gone."
SANDBOX = ("tests/rewards/", "tests/commands/test_score.py")
"Tests that look at all processes of the machine, listen on one port, or count seconds."


class GroupScheduling(LoadScopeScheduling):
    """Gives each group of tests to one worker. (xdist's own `loadgroup` does not see its marks under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        """What one worker runs, one after another: all engines of vLLM, all sandboxes, else the tests of a file."""
        for name, paths in (("vllm", VLLM), ("sandbox", SANDBOX)):
            if nodeid.startswith(paths):
                return name
        return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Run groups of tests in two processes."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the long ones, so that no worker is left with a long one alone."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """0 for the tests of vLLM, 1 for other slow ones, 2 for quick ones."""
    return 0 if item.get_closest_marker("vllm") else 1 if item.get_closest_marker("slow") else 2


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run beside each other; threads that wait for each other would make them slow."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The directory of SmolLM2-135M-Instruct."""
    done = subprocess.run([ROOT / "scripts" / "get_smollm2.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        pytest.skip("the package of SmolLM2 cannot be downloaded or converted here; scripts/get_smollm2.sh says why")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy directory with random weights: grouped-query attention, tied embeddings, byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    directory: Path = tmp_path_factory.mktemp("random_policy")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bytes_tokenizer = Tokenizer(models.BPE(vocabulary, []))
    bytes_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer, eos_token=special[2], pad_token=special[0])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium; tests that use it are marked `browser`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()
