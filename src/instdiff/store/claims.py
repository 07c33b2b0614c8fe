"""Work under way in one folder, so that several processes do not pay for the same."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from instdiff.core import Log
from instdiff.store.keys import Keys
from instdiff.store.store import ColumnId, Store

FILE = "claims.sqlite"
LEASE = 120.0
"""Seconds after which the claim of a process that no longer renews it is void."""
PATIENCE = 30.0
"""Seconds to wait for another process's write."""

_TABLE = """
CREATE TABLE IF NOT EXISTS claims (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL
) WITHOUT ROWID
"""
_TAKE = """
INSERT INTO claims VALUES (?, ?, ?) ON CONFLICT (key)
DO UPDATE SET owner = excluded.owner, until = excluded.until WHERE owner = excluded.owner OR until < ?
"""


class Claims:
    """The rows that this process computes; other processes on the folder leave them to it.

    What was computed stays claimed until the lease ends, because a column has it a moment later. The claims of a killed
    process count as long; on its own machine they are void for the next process that begins. Where the file of the
    claims cannot be used, one log line says so and every row is free.

    Args:
        folder: that all these processes see.
        name: of a row: what its value depends on, in hex or words.
        lacks: whether a row's value is still to be computed, by all that any process has kept.
        log: is told of a file that cannot be used.
        lease: seconds that a claim counts without being renewed.
    """

    def __init__(
        self,
        folder: Path,
        name: Callable[[int], str],
        lacks: Callable[[int], bool],
        log: Log,
        lease: float = LEASE,
    ) -> None:
        self.folder, self.name, self.lease, self._lacks = folder, name, lease, lacks
        self._log, self._owner = log, f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        self._open: set[int] = set()
        self._db: sqlite3.Connection | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / FILE, PATIENCE, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = OFF")  # a claim need not outlive the machine
            self._db.execute(_TABLE)
            self._clear(self._db)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    @classmethod
    def of_columns(cls, store: Store, columns: Sequence[ColumnId], keys: Keys, log: Log, lease: float = LEASE) -> Self:
        """Claims of the rows of a pass, by their keys; ``columns`` are what it computes, all of one model."""

        def lacks(row: int) -> bool:
            return any(bool(store.missing(column, keys[row : row + 1])[0]) for column in columns)

        return cls(store.root, lambda row: f"{columns[0].model} {bytes(keys[row]).hex()}", lacks, log, lease)

    def take(self, row: int) -> bool | None:
        """True where the row is now this process's, False where it is another's, None where it is there."""
        if self._execute(_TAKE, (self.name(row), self._owner, time.time() + self.lease, time.time())) == 0:
            return False if self._lacks(row) else None
        if self._db is not None and row not in self._open and not self._lacks(row):
            self.free(row)
            return None
        self._open.add(row)
        return True

    def done(self, row: int) -> None:
        """The row was computed: its claim stays until the column has it."""
        self._open.discard(row)

    def free(self, row: int) -> None:
        """The row was not computed: anybody may."""
        self._open.discard(row)
        self._execute("DELETE FROM claims WHERE key = ? AND owner = ?", (self.name(row), self._owner))

    def renew(self) -> None:
        """Tell that this process still works."""
        self._execute("UPDATE claims SET until = ? WHERE owner = ?", (time.time() + self.lease, self._owner))

    def close(self) -> None:
        """Free what was taken and not computed."""
        for row in list(self._open):
            self.free(row)
        if self._db is not None:
            self._db.close()
            self._db = None

    @staticmethod
    def _clear(db: sqlite3.Connection) -> None:
        """Drop the claims that are void."""
        db.execute("DELETE FROM claims WHERE until < ?", (time.time(),))
        for (owner,) in db.execute("SELECT DISTINCT owner FROM claims").fetchall():
            host, pid, _ = owner.rsplit(" ", 2)
            if host == socket.gethostname() and not _runs(int(pid)):
                db.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    def _execute(self, command: str, values: tuple[object, ...]) -> int:
        """Rows that a command changed; one where there is no file."""
        if self._db is None:
            return 1
        try:
            with closing(self._db.execute(command, values)) as done:
                return done.rowcount
        except sqlite3.Error as error:
            self._give_up(error)
            return 1

    def _give_up(self, error: Exception) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
        self._log(f"warning: '{self.folder / FILE}' cannot be used ({error}); other processes may ask the same")


def _runs(pid: int) -> bool:
    """Whether a process of this machine is there; where that cannot be asked, yes."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
