"""A checkpoint becomes a Hugging Face directory with the same policy in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lightning import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from maxk_lightning.callbacks import AtomicCheckpointIO, RolloutCallback
from maxk_lightning.commands.export import export
from maxk_lightning.commands.export.model_card import model_card, read_run_config
from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.types import Sampling
from tests.support.builders import make_run, make_samples
from tests.support.fakes import LengthReward
from tests.support.tiny_run import run


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


def test_weights_can_be_moved_towards_the_base(checkpoint: Path, random_policy: str, tmp_path: Path) -> None:
    export(str(checkpoint), str(tmp_path / "policy"), towards=random_policy, by=0.25)
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    base = AutoModelForCausalLM.from_pretrained(random_policy).state_dict()
    for name, weight in moved.items():
        torch.testing.assert_close(weight, 0.75 * trained[f"policy.model.{name}"] + 0.25 * base[name])
    assert any(not torch.equal(weight, trained[f"policy.model.{name}"]) for name, weight in moved.items())
    assert "with 0.25 of the weights of" in (tmp_path / "policy" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": 0.5}, "--towards and --by belong together"),
        ({"towards": "builtin"}, "--towards and --by belong together"),
        ({"towards": "builtin", "by": 1.0}, "--by is 1.0, must be between 0"),
        ({"towards": "builtin", "by": 0.5, "adapter": True}, "--adapter"),
        ({"towards": "builtin", "by": 0.5}, "--towards: builtin has other weights than the checkpoint's policy"),
    ],
)
def test_weights_of_no_use_are_refused(checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(str(checkpoint), str(tmp_path / "policy"), **options)
    assert not (tmp_path / "policy").exists()


def test_what_is_no_checkpoint_or_would_be_overwritten_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint file"):
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


def test_without_the_run_s_configuration_the_card_says_so(checkpoint: Path, random_policy: str, tmp_path: Path) -> None:
    export(str(checkpoint), str(tmp_path / "policy"))
    card = ModelCard.load(tmp_path / "policy" / "README.md")
    assert "The run's config.yaml was not found beside the checkpoint." in card.text
    assert "## Results" not in card.text
    before, after = (GenerationConfig.from_pretrained(each) for each in (random_policy, tmp_path / "policy"))
    assert after.to_diff_dict() == before.to_diff_dict()


def test_the_configuration_is_that_of_the_checkpoint_s_own_run(tmp_path: Path) -> None:
    config = "model: {}\ndata: {}\nrollout: {}\n"
    for name in ("mine", "other"):
        (tmp_path / name / "tensorboard").mkdir(parents=True)
        (tmp_path / name / "tensorboard" / "config.yaml").write_text(f"{config}name: {name}\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(f"{config}name: neighbour\n")
    (tmp_path / "stray" / "config").mkdir(parents=True)
    found = read_run_config(tmp_path / "mine" / "checkpoints" / "last.ckpt")
    assert found is not None
    assert found["name"] == "mine"
    assert read_run_config(tmp_path / "stray" / "last.ckpt") is None
    (tmp_path / "stray" / "config" / "config.yaml").write_text("model: {}\n")
    assert read_run_config(tmp_path / "stray" / "last.ckpt") is None  # of another program


def test_a_hub_policy_is_named_as_base_model_and_a_directory_is_not(tmp_path: Path) -> None:
    (tmp_path / "own" / "policy").mkdir(parents=True)
    found = [
        ModelCard(model_card("name", base, 3, None, [], {}, [])).data.to_dict().get("base_model")
        for base in ("owner/name", str(tmp_path / "own"), "builtin")
    ]
    assert found == ["owner/name", None, None]


@pytest.mark.slow
def test_the_card_tells_settings_results_and_use(random_policy: str, tmp_path: Path) -> None:
    root, out = tmp_path / "run", tmp_path / "policy"
    objective = {"model.objective": "MaxAtK", "model.objective.k": 2, "model.objective.baseline": "loo1"}
    template = {"data.template.system": "Be short.", "data.template.user": "Task: {prompt}"}
    run("fit", root, random_policy, **objective, **template, **{"rollout.sampling.temperature": 0.7})
    make_run(tmp_path / "evaluated" / "trained", make_samples({"x": [1.0, 0.25], "y": [0.5, None]}))
    export(str(root / "checkpoints" / "last.ckpt"), str(out), results=str(tmp_path / "evaluated"))

    sampling = GenerationConfig.from_pretrained(out)
    assert (sampling.do_sample, sampling.temperature, sampling.max_new_tokens) == (True, 0.7, 6)
    assert (sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1.0, 0, 1.0)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert "| objective | `MaxAtK(k=2, baseline=loo1)` |" in card.text
    assert "| trained | 0.562 | 1.000 |" in card.text  # (0.625 + 0.5) / 2; y has one scored sample
    assert "1 samples could not be scored" in card.text
    callbacks = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    ((step, curve),) = callbacks["CurveWriter"]["latest"].items()
    assert f"| {step} | " + " | ".join(f"{curve[k]:.3f}" for k in (1, 2, 4)) + " |" in card.text

    example = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert example
    names: dict[str, object] = {}
    exec(example[1].replace('"."', repr(str(out))), names)
    assert names["chat"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Task: Read two integers, print their sum."},
    ]
    assert len(names["samples"]) == 8  # type: ignore[arg-type]
