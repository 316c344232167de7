"""Where callbacks write what is no scalar: every logger of a run gets the same figures, texts and samples.

Scalars go through `self.log`, which Lightning hands to every logger itself.
"""

import csv
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, Protocol

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

logger = logging.getLogger(__name__)
_FOLD = TextWrapper(100, expand_tabs=False, replace_whitespace=False, drop_whitespace=False)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"[height, width, 3]"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """A sample as a table shows it."""

    problem: str
    "Id of the problem."
    prompt: str
    "Its statement."
    reward: float | None
    "Reward; None: it could not be scored."
    finish_reason: str
    "`stop` or `length`."
    verdicts: str
    "How many tests ended how."
    completion: str
    "What the policy answered."


class Page(Protocol):
    """A logger's place for what is no scalar."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text."""
        ...

    def picture(self, tag: str, pixels: Pixels, step: int) -> None:
        """Write a picture."""
        ...

    def samples(self, tag: str, rows: Sequence[SampleRow], step: int) -> None:
        """Write a table of samples."""
        ...


def pages(trainer: Trainer) -> list[Page]:
    """List the pages of a run's loggers; on ranks other than the first there are none."""
    if not trainer.is_global_zero:
        return []
    return [_PAGES[kind](each) for each in trainer.loggers for kind in _PAGES if isinstance(each, kind)]


def tell_of_others(loggers: Sequence[Logger]) -> None:
    """Warn of loggers that have no page."""
    for each in loggers:
        if not isinstance(each, tuple(_PAGES)):
            kinds = ", ".join(kind.__name__ for kind in _PAGES)
            logger.warning("%s gets scalars and hyper-parameters alone; figures, samples and glossary go to %s",
                           type(each).__name__, kinds)  # fmt: skip


def pixels_of(figure: Figure) -> Pixels:
    """Draw a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba: Pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()


class TensorBoardPage:
    """Images and texts of TensorBoard."""

    def __init__(self, page_of: TensorBoardLogger) -> None:
        self._writer: Any = page_of.experiment

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write to the text page."""
        self._writer.add_text(tag, markdown, step)

    def picture(self, tag: str, pixels: Pixels, step: int) -> None:
        """Write to the image page."""
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def samples(self, tag: str, rows: Sequence[SampleRow], step: int) -> None:
        """Write to the text page, which has no tables that take programs."""
        self._writer.add_text(tag, _as_markdown(rows), step)


class WandbPage:
    """Media of W&B, beside its charts."""

    def __init__(self, page_of: WandbLogger) -> None:
        self._logger = page_of

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Log a table of one cell."""
        self._logger.log_text(tag, columns=[tag], data=[[markdown]], step=step)

    def picture(self, tag: str, pixels: Pixels, step: int) -> None:
        """Log an image."""
        self._logger.log_image(tag, [Image.fromarray(pixels)], step=step)

    def samples(self, tag: str, rows: Sequence[SampleRow], step: int) -> None:
        """Log a table."""
        records = [asdict(row) for row in rows]
        data = [list(record.values()) for record in records]
        self._logger.log_table(tag, columns=list(SampleRow.__slots__), data=data, step=step)


class MLFlowPage:
    """Artifacts and images of an MLflow run."""

    def __init__(self, page_of: MLFlowLogger) -> None:
        self._client: Any = page_of.experiment
        self._run_id = page_of.run_id

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Keep as a file."""
        self._client.log_text(self._run_id, markdown, f"{tag}.md")

    def picture(self, tag: str, pixels: Pixels, step: int) -> None:
        """Log an image of the step."""
        self._client.log_image(self._run_id, Image.fromarray(pixels), key=tag, step=step)

    def samples(self, tag: str, rows: Sequence[SampleRow], step: int) -> None:
        """Append to a table."""
        records = [{"step": step, **asdict(row)} for row in rows]
        columns = {name: [record[name] for record in records] for name in ("step", *SampleRow.__slots__)}
        self._client.log_table(self._run_id, columns, f"{tag}.json")


class CSVPage:
    """Files beside `metrics.csv`."""

    def __init__(self, page_of: CSVLogger) -> None:
        self._directory = Path(page_of.log_dir)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a Markdown file."""
        self._file(f"{tag}.md").write_text(markdown, encoding="utf-8")

    def picture(self, tag: str, pixels: Pixels, step: int) -> None:
        """Write a PNG file per step."""
        Image.fromarray(pixels).save(self._file(f"{tag}/step-{step:06}.png"))

    def samples(self, tag: str, rows: Sequence[SampleRow], step: int) -> None:
        """Append to a CSV file."""
        path = self._file(f"{tag}.csv")
        is_new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", *SampleRow.__slots__])
            if is_new:
                writer.writeheader()
            writer.writerows({"step": step, **asdict(row)} for row in rows)

    def _file(self, name: str) -> Path:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


_PAGES: dict[type[Logger], Callable[[Any], Page]] = {
    TensorBoardLogger: TensorBoardPage,
    WandbLogger: WandbPage,
    MLFlowLogger: MLFlowPage,
    CSVLogger: CSVPage,
}


def _as_markdown(rows: Sequence[SampleRow]) -> str:
    """Each problem, then its samples, as code blocks that no backtick inside can end."""
    parts = []
    for problem, samples in itertools.groupby(rows, key=lambda row: (row.problem, row.prompt)):
        texts = [f"**{problem[0]}**", _indented(problem[1])]
        for row in samples:
            texts += [f"reward {row.reward}, {row.finish_reason}, {row.verdicts}", _indented(row.completion)]
        parts.append("\n\n".join(texts))
    return "\n\n---\n\n".join(parts)


def _indented(text: str) -> str:
    """A code block with folded lines: longer ones, of statements as a rule, would have to be scrolled to be read."""
    lines = [part for line in text.splitlines() for part in _FOLD.wrap(line) or [""]]
    return "\n".join("    " + line for line in lines)
