"""Verdicts on disk, shared by processes and by runs."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import cast

from maxk_lightning.rewards.judging import Verdicts
from maxk_lightning.types import Verdict

REPEATABLE = frozenset({"passed", "wrong_answer", "runtime_error"})
"Verdicts that another run gives again. Limits depend on the machine and its load: those programs are run again."
WAIT_S = 60.0
"How long to wait for another process that is writing."


class VerdictStore:
    """A table of verdicts by program and tests, on a local disk. Not thread-safe; a fork opens it anew."""

    def __init__(self, path: str) -> None:
        """Name the file; it is made at the first use.

        Raises:
            ValueError: its directory cannot be made.
        """
        self.path = path
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cache_file is {path}: {error.strerror}") from error
        self._connection: sqlite3.Connection | None = None
        self._owner_pid = 0
        self._inherited: list[sqlite3.Connection | None] = []  # closed by a fork, they would release its parent's locks

    def get(self, key: bytes) -> Verdicts | None:
        """The verdicts of a program, None where it is unknown."""
        row = self._opened().execute("SELECT verdicts FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else cast("tuple[Verdict, ...]", tuple(row[0].split()))

    def put(self, key: bytes, verdicts: Verdicts) -> None:
        """Keep verdicts, if every run of the program gives them."""
        if REPEATABLE.issuperset(verdicts):
            row = (key, " ".join(verdicts))
            self._opened().execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", row)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        if self._connection is not None and self._owner_pid == os.getpid():
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None or self._owner_pid != os.getpid():
            self._inherited.append(self._connection)
            try:
                self._connection = self._open()
            except sqlite3.Error as error:
                raise ValueError(f"cache_file is {self.path}: {error}") from error
            self._owner_pid = os.getpid()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as undo:
            connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            undo.callback(connection.close)
            connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, verdicts TEXT) WITHOUT ROWID"
            )
            undo.pop_all()
        return connection
