"""Verdicts on disk, shared by processes and by runs."""

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

from maxk_lightning.rewards.verdicts import BEHAVIOUR_LENGTH, Judgement
from maxk_lightning.types import Verdict

logger = logging.getLogger(__name__)

REPEATABLE: frozenset[Verdict] = frozenset({"passed", "wrong_answer", "runtime_error"})
"Verdicts that another run gives again. Limits depend on the machine and its load: those programs are run again."
CONSTANT = "constant"
"Ends the row of a program that said the same on every test."
WAIT_S = 60.0
"How long to wait for another process that is writing."


class VerdictStore:
    """A table of verdicts by program and tests, on a local disk. Not thread-safe; a fork opens it anew."""

    def __init__(self, path: str) -> None:
        """Name the file; it is made at the first use.

        Raises:
            ValueError: it is a directory, or its directory cannot be made.
        """
        self.path = path
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cache_file is {path}: {error.strerror}") from error
        if Path(path).is_dir():
            raise ValueError(f"cache_file is {path}: Is a directory")
        self._connection: sqlite3.Connection | None = None
        self._owner_pid = 0
        self._is_broken = False
        self._inherited: list[sqlite3.Connection | None] = []  # closed by a fork, they would release its parent's locks

    def check(self) -> None:
        """Raise ValueError where a file is there that is no store."""
        if Path(self.path).exists():
            self._opened()

    def get(self, key: bytes, num_tests: int) -> Judgement | None:
        """What came of a program, None where it is unknown: also where the row is damaged, another's, or an old one."""
        row = self._execute("SELECT verdicts FROM verdicts WHERE key = ?", (key,))
        words = row[0].split() if row and isinstance(row[0], str) else []
        is_constant = words[-1:] == [CONSTANT]
        *words, behaviour = words[: len(words) - is_constant] or [""]
        verdicts = tuple(verdict for word in words for verdict in REPEATABLE if verdict == word)
        if not len(words) == len(verdicts) == num_tests or len(behaviour) != BEHAVIOUR_LENGTH:
            return None
        return Judgement(verdicts=verdicts, behaviour=behaviour, is_constant=is_constant)

    def put(self, key: bytes, judgement: Judgement) -> None:
        """Keep verdicts and behaviour, if every run of the program gives them."""
        if REPEATABLE.issuperset(judgement.verdicts) and judgement.behaviour is not None:
            text = " ".join([*judgement.verdicts, judgement.behaviour, *[CONSTANT] * judgement.is_constant])
            self._execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, text))

    def _execute(self, statement: str, values: tuple[object, ...]) -> Any:
        """The first row; a file that breaks while it is used costs time only, so it is left alone from there on."""
        if self._is_broken:
            return None
        connection = self._opened()
        try:
            return connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            self._is_broken = True
            logger.warning("cache_file is %s: %s; verdicts are no longer read from it or kept in it", self.path, error)
            return None

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
