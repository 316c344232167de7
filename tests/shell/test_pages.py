"""Samples as TensorBoard's text page shows them."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maxk_lightning.callbacks.pages import SampleRow, TensorBoardPage


def test_long_lines_are_folded_and_code_stays_as_it_is(tmp_path: Path) -> None:
    statement = "Add the numbers, " * 30
    program = "for x in range(3):\n\n\tif x:\n        print(x)"
    row = SampleRow(
        problem="p", prompt=statement, reward=1.0, finish_reason="stop", verdicts="1 passed", completion=program
    )
    logger = TensorBoardLogger(tmp_path, name="", version="t")
    TensorBoardPage(logger).samples("train/samples", [row], 0)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "t"), size_guidance={"tensors": 0}).Reload()
    text = events.Tensors("train/samples/text_summary")[0].tensor_proto.string_val[0].decode()
    blocks = [block for block in text.split("\n\n") if block.startswith("    ")]
    folded = blocks[0].splitlines()
    assert max(map(len, folded)) <= 104
    assert "".join(line.removeprefix("    ") for line in folded) == statement
    assert text.endswith("\n".join("    " + line for line in program.splitlines()))
