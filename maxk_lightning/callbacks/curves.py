"""The max@k curve of every validation as a TensorBoard figure."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class CurveWriter(Callback):
    """Draws the latest validation curve over the first one of the run."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[int, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve whose scalars were just logged."""
        prefix = "val/max_at_k/"
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith(prefix)}
        curve = {int(tag.removeprefix(prefix)): value for tag, value in values.items()}
        if not curve:
            return
        self._first = self._first or curve
        figure = _draw({"first": self._first, f"step {trainer.global_step}": curve})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("val/max_at_k_curve", figure, trainer.global_step)

    def state_dict(self) -> dict[str, dict[int, float]]:
        """The first curve, so that a resumed run goes on comparing with it."""
        return {"first": self._first}

    def load_state_dict(self, state_dict: dict[str, dict[int, float]]) -> None:
        """Restore the first curve."""
        self._first = state_dict["first"]


def _draw(curves: dict[str, dict[int, float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", xlabel="k", ylabel="max@k")
    axes.set_xscale("log", base=2)
    for label, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=label)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
