"""The max@k curve of every validation as a picture."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from maxk_lightning.callbacks.pages import pages, pixels_of
from maxk_lightning.evaluation.estimates import Estimate
from maxk_lightning.evaluation.figures import curve_figure

PREFIX = "val/max_at_k/"


class CurveWriter(Callback):
    """Draws the latest validation curve beside the first one of the run."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, dict[int, float]] = {}
        self._latest: dict[str, dict[int, float]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve whose scalars were just logged."""
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith(PREFIX)}
        curve = {int(tag.removeprefix(PREFIX)): value for tag, value in values.items()}
        if not curve:
            return
        step = max(0, trainer.global_step - 1)  # the step of the scalars of this validation
        name = f"step {step}" if trainer.global_step else "before training"
        self._latest = {name: curve}
        self._first = self._first or self._latest
        lines = {
            label: [Estimate(k=k, value=value) for k, value in sorted(points.items())]
            for label, points in (self._first | self._latest).items()
        }
        pixels = pixels_of(curve_figure(lines, "max@k", "validation problems"))
        for page in pages(trainer):
            page.picture("val/max_at_k_curve", pixels, step)

    def state_dict(self) -> dict[str, dict[str, dict[int, float]]]:
        """Keep the first curve, with which a resumed run continues to compare, and the latest, for `export`."""
        return {"first": self._first, "latest": self._latest}

    def load_state_dict(self, state_dict: dict[str, dict[str, dict[int, float]]]) -> None:
        """Restore both curves."""
        self._first, self._latest = state_dict["first"], state_dict["latest"]
