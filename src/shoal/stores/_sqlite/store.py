"""``SQLiteStore``: runs in a file. Imports what stores in databases have in common.

What the file looks like is in ``_sqlite_file``; how its threads have it, in ``_sqlite_database``.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import final

from shoal._errors.exceptions import DefinitionError
from shoal.stores._codec.codec import Codec
from shoal.stores._sql.sizes import MAX_UPDATE
from shoal.stores._sql.store import LEASE, WINDOW, Durability, DurableStore

from .database import SQLITE, SQLiteDatabase
from .file import Faults, Synchronous, connect

PATIENCE = 5.0
"""Seconds that a save waits for a locked file or a full disk."""


@final
class SQLiteStore(DurableStore):
    """Keeps runs in a file, with SQLite: they survive the end of the process, whatever ends it.

    Any number of processes of one machine may use a file; each run is executed by one of them at a
    time. An execution that ends without a word, killed say, leaves its run claimed: another process
    on the machine that finds its process gone takes the run over at once; else it can when the
    lease has run out. The execution that was taken over, if it still lives, can't save any more and
    ends with ``LeaseLost``.

    How much a crash may take away is said by ``durability``:

    - ``"sync"``: nothing. What hooks, callers and parents have seen is in the file.
    - ``"relaxed"``: what was saved in the last ``window`` seconds; nobody waits for the disk.
    - ``"end"``: what the execution has done so far, or the last part of that. How a root run ended
      is waited for all the same, here as with ``"relaxed"``.

    What was done and is lost is done again on resume. The file itself is whole after any crash.
    With ``synchronous="full"``, what was waited for survives also that the machine loses its power;
    ``"normal"`` saves that wait for the disk: then a kill of the process, by whatever signal, takes
    nothing away, while a loss of power may take the last saves.

    The file is opened when a run is claimed and closed when the last one is given back. A service
    opens it for as long as it lives: ``async with SQLiteStore("runs.db") as store``. One object may
    be used by several runtimes and event loops, in one process; in a forked one it starts anew.

    Its layout is documented (docs/store-layout.md), and other programs may read it at any time.

    Examples:
        >>> import anyio, tempfile
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> async def main(file: str) -> None:
        ...     app = Application(square, store=SQLiteStore(file))
        ...     await app.run({"n": 3}, id="three")
        ...     again = await app.run(id="three")  # returns what is recorded, and runs nothing
        ...     print(again.state["square"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     anyio.run(main, f"{folder}/runs.db")
        9
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Codec | None = None,
        durability: Durability = "sync",
        window: float = WINDOW,
        synchronous: Synchronous = "full",
        lease: float = LEASE,
        heartbeat: float | None = None,
        patience: float = PATIENCE,
        max_update: int = MAX_UPDATE,
    ) -> None:
        """Describe it; nothing is opened yet, and no file made.

        Args:
            path: The file. Its directory has to exist, on a disk of this machine.
            codec: Knows the types of values; by default, those that any ``Codec`` knows.
            durability: How much a crash may take away.
            window: Seconds of saves that it may, with ``durability="relaxed"``.
            synchronous: Whether the disk is waited for: SQLite's setting of that name.
            lease: Seconds for which a run stays claimed without a sign of life.
            heartbeat: Seconds between signs of life; by default a third of the lease.
            patience: Seconds that a save waits while the file is locked or the disk full. Let it be
                less than the commit deadline of the runtime.
            max_update: Bytes that one update may have. Above 1 MB there is a warning, once.

        Raises:
            DefinitionError: An argument is none of these.
            ImportError: msgspec isn't installed.
        """
        if str(path) == ":memory:" or not Path(path).name:
            msg = f"SQLiteStore takes the path of a file, not {str(path)!r}; see MemoryStore"
            raise DefinitionError(msg)
        if synchronous not in ("full", "normal"):
            msg = f"synchronous= is 'full' or 'normal', not {synchronous!r}"
            raise DefinitionError(msg)
        self.path: Path = Path(path).absolute()  # wherever the process goes
        self._synchronous: Synchronous = synchronous
        super().__init__(
            SQLITE,
            Faults(self.path, patience),
            codec=codec,
            durability=durability,
            window=window,
            lease=lease,
            heartbeat=heartbeat,
            patience=patience,
            max_update=max_update,
        )

    def __repr__(self) -> str:
        return f"<SQLiteStore {str(self.path)!r}, {len(self._claims)} runs claimed>"

    @property
    def _name(self) -> str:
        return self.path.name

    def _database(self) -> SQLiteDatabase:
        return SQLiteDatabase(self._config, self.path, self._synchronous, self._take_readers)

    def _connect(self) -> sqlite3.Connection | None:
        if not self.path.exists():
            return None
        patience = self._config.patience
        return connect(self.path, patience=patience, synchronous=self._synchronous, reads_only=True)
