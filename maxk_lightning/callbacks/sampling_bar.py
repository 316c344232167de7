"""How far sampling is: completions that have ended, tokens per second, time left."""

import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from maxk_lightning.types import Completion

LINE_EVERY_S = 30.0
"Where nothing can be redrawn, such as a file, there is a line this often."


def make_progress(console: Console, is_enabled: bool = True) -> Progress:
    """Make bars that are redrawn in place; nothing is drawn where the output is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    return Progress(*columns, console=console, disable=not (is_enabled and console.is_terminal))


class SamplingBar:
    """A watcher of the sampler (`rollouts.collect.Watcher`): moves a bar as completions end, in any thread."""

    def __init__(
        self,
        progress: Progress,
        description: str,
        line: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a bar; `begin` shows it.

        Args:
            progress: Bars to which it belongs.
            description: What is sampled.
            line: Prints the same as a line, now and then, if the bar is not drawn.
            clock: Gives the time in seconds.
        """
        self._progress = progress
        self._task = progress.add_task(description, total=None, visible=False, shown="")
        self._description = description
        self._line = line
        self._clock = clock
        self._lock = threading.Lock()
        self._num_ended = self._num_tokens = self._total = 0
        self._since = self._last_line = 0.0

    def begin(self, num_completions: int, num_done: int = 0) -> None:
        """Begin anew with `num_completions` completions, of which `num_done` are there from an earlier run."""
        with self._lock:
            self._num_ended, self._num_tokens, self._total = num_done, 0, num_completions
            self._since = self._last_line = self._clock()
            self._progress.reset(self._task, total=num_completions, completed=num_done, visible=True, shown="")

    def ended(self, completion: Completion) -> None:
        """Count a completion."""
        with self._lock:
            self._num_ended = min(self._total, self._num_ended + 1)  # what a kill cut is sampled again
            self._num_tokens += len(completion.token_ids)
            now = self._clock()
            speed = f"{self._num_tokens / max(1e-9, now - self._since):.0f} tokens/s"
            self._progress.update(self._task, completed=self._num_ended, shown=speed)
            if self._line is not None and self._progress.disable and now - self._last_line > LINE_EVERY_S:
                self._last_line = now
                self._line(f"{self._description}: {self._num_ended} of {self._total} samples, {speed}")

    def hide(self) -> None:
        """Hide it until the next `begin`."""
        self._progress.update(self._task, visible=False)
