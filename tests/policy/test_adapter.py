"""An adapter directory as a policy: what is merged is what peft computes; what is missing is named."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxk_lightning.commands.loadable import is_loadable, loadable
from maxk_lightning.evaluation.origin import Training, read_training, write_training
from maxk_lightning.policy import load_model, resolve_policy
from maxk_lightning.policy.adapter import CONFIG
from tests.support.adapters import randomise

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def adapter(random_policy: str, tmp_path: Path) -> Path:
    """Saved by peft, with a B that is not zero."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(random_policy), config)
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _change(adapter: Path, **changes: str | int | None) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | changes))


def test_the_merged_policy_computes_what_peft_computes(adapter: Path, random_policy: str, tmp_path: Path) -> None:
    write_training(Training(started_from="base", steps=3), adapter)
    assert not is_loadable(str(adapter))
    merged = loadable(str(adapter), tmp_path / "policy")
    assert is_loadable(merged)
    theirs = PeftModel.from_pretrained(load_model(random_policy), str(adapter))
    ours = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=2e-5, rtol=2e-5)
        assert (ours(IDS).logits - load_model(random_policy)(IDS).logits).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(random_policy).chat_template
    assert read_training(Path(merged)) == Training(started_from="base", steps=3)


def test_what_is_loadable_stays_where_it_is(random_policy: str, tmp_path: Path) -> None:
    for policy in (random_policy, "builtin", "owner/name"):
        assert loadable(policy, tmp_path / "policy") == policy
    assert not (tmp_path / "policy").exists()


def test_an_adapter_without_its_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    _change(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"adapter_config.json names no base \(base_model_name_or_path\)"):
        loadable(str(adapter), tmp_path / "policy")
    _change(adapter, base_model_name_or_path=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="absent"):
        loadable(str(adapter), tmp_path / "policy")


def test_a_directory_that_was_copied_in_part_is_refused(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"adapter has no weights \(adapter_model.safetensors\)"):
        loadable(str(adapter), tmp_path / "policy")
    (adapter / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json: not JSON \(Expecting"):
        loadable(str(adapter), tmp_path / "policy")


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    _change(adapter, base_model_name_or_path="builtin")
    with pytest.raises(ValueError, match="adapter does not fit its base builtin: "):
        loadable(str(adapter), tmp_path / "policy")


def test_a_training_that_begins_with_an_adapter_is_refused(adapter: Path) -> None:
    with pytest.raises(ValueError, match="holds an adapter, not a policy; `evaluate` and `best` take it as --policy"):
        resolve_policy(str(adapter))
