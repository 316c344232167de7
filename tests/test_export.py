"""A checkpoint becomes a Hugging Face directory with the same policy in it."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxk_lightning.callbacks import AtomicCheckpointIO, RolloutCallback
from maxk_lightning.commands.export import export
from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.types import Sampling
from tests.fakes import LengthReward


@pytest.fixture(scope="module")
def checkpoint(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by a Trainer after a step that changed the weights."""
    directory = tmp_path_factory.mktemp("run")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            RolloutCallback(
                TransformersEngine(random_policy), LengthReward(), Sampling(num_completions=4, max_new_tokens=8)
            )
        ],
    )
    module = PolicyModule(
        policy=random_policy, objective=GRPO(), optimizer=lambda params: torch.optim.SGD(params, lr=0.1)
    )
    data = PromptDataModule(train=Builtin("train", limit=4), validation=None, policy=random_policy)
    trainer.fit(module, data)
    trainer.save_checkpoint(directory / "last.ckpt")
    return directory / "last.ckpt"


def test_the_directory_holds_the_trained_policy_and_its_tokenizer(
    checkpoint: Path, random_policy: str, tmp_path: Path
) -> None:
    export(str(checkpoint), str(tmp_path / "policy"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, weight in exported.state_dict().items():
        assert torch.equal(weight, trained[f"policy.model.{name}"]), name
    base = AutoModelForCausalLM.from_pretrained(random_policy).state_dict()
    assert any(not torch.equal(weight, base[name]) for name, weight in exported.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(random_policy).chat_template


def test_what_is_no_checkpoint_or_would_be_overwritten_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        export(str(tmp_path / "absent.ckpt"), str(tmp_path / "out"))
    (tmp_path / "garbage.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        export(str(tmp_path / "garbage.ckpt"), str(tmp_path / "out"))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="was not written by"):
        export(str(tmp_path / "other.ckpt"), str(tmp_path / "out"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="exists"):
        export(str(checkpoint), str(tmp_path / "taken"))
