"""``SQLiteStore``: keep runs in a file. ``file`` has its layout, ``database`` writes to it."""

from __future__ import annotations

import os
import sqlite3
from itertools import count
from pathlib import Path
from typing import final

from anyio import to_thread

from shoal._errors.exceptions import DefinitionError
from shoal.stores._codec.codec import Codec
from shoal.stores._sql.dialect import Connection
from shoal.stores._sql.sizes import MAX_UPDATE
from shoal.stores._sql.store import LEASE, WINDOW, Durability, DurableStore

from .database import SQLITE, SQLiteDatabase
from .file import SQLiteErrorPolicy, Synchronous, Unlocked, connect

_markings = count()

PATIENCE = 5.0
"""Seconds that a save waits for a locked file or a full disk."""


@final
class SQLiteStore(DurableStore):
    """Keeps runs in a file, with SQLite: they survive any end of the process.

    Any number of processes on one machine may use a file; each run is executed by one of them at a
    time. An execution that is killed leaves its run claimed. Another process on the same machine
    can see that the process is gone, and takes the run over at once; otherwise it has to wait until
    the lease has expired. If the execution that lost its run is still alive, its saves are refused
    and it ends with ``LeaseLost``.

    ``durability`` sets how much a crash may lose:

    - ``"sync"``: nothing. Everything that hooks, callers and parents have seen is in the file.
    - ``"relaxed"``: the saves of the last ``window`` seconds. Saves don't wait for the disk.
    - ``"end"``: the work of the current execution, or the last part of it.

    With the latter two, too, a run waits for the save of its end. Lost work is done again when the
    run is resumed. The file itself is consistent after any crash. With ``synchronous="full"``,
    awaited saves survive even a loss of power. ``"normal"`` is faster because saves don't wait for
    the disk: they survive any kill of the process, but a loss of power may lose the last ones.

    The file is opened when the first run is claimed, and closed when the last one is released. A
    service keeps it open for as long as it lives: ``async with SQLiteStore("runs.db") as store``.
    Several runtimes and event loops of one process may share a store object; in a forked process it
    starts anew.

    The layout is documented (docs/store-layout.md), and other programs may read it at any time.

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
        """Create a store for a file. The file is not opened or created yet.

        Args:
            path: The file. Its directory has to exist, on a disk of this machine.
            codec: Encodes the values; by default a ``Codec`` without registered types.
            durability: How much a crash may lose.
            window: The seconds of saves that a crash may lose with ``durability="relaxed"``.
            synchronous: Whether saves wait for the disk: SQLite's setting of that name.
            lease: Seconds for which a run stays claimed without a sign of life.
            heartbeat: Seconds between signs of life; by default a third of the lease.
            patience: Seconds that a save waits while the file is locked or the disk full. Choose
                less than the commit deadline of the runtime.
            max_update: The most bytes of one update. The first one above 1 MB causes a warning.

        Raises:
            DefinitionError: An argument has another type or value.
            ImportError: msgspec isn't installed.
        """
        if str(path) == ":memory:" or not Path(path).name:
            msg = f"SQLiteStore takes the path of a file, not {str(path)!r}; see MemoryStore"
            raise DefinitionError(msg)
        if synchronous not in ("full", "normal"):
            msg = f"synchronous= is 'full' or 'normal', not {synchronous!r}"
            raise DefinitionError(msg)
        self.path: Path = Path(path).absolute()  # stays the same if the process changes directory
        self._synchronous: Synchronous = synchronous
        super().__init__(
            SQLITE,
            SQLiteErrorPolicy(self.path, patience),
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

    async def mark(self) -> object:
        """Return a value that differs if anything was saved in between; see ``Inspects``.

        While the store is not open, it differs with each call.

        Raises:
            StoreFailed: The file can't be used.
        """
        await self._flush()
        return await to_thread.run_sync(self._version)

    def _version(self) -> tuple[int, int] | None:
        """Return how often others have changed the file, as one connection sees it.

        That number says nothing to another connection, so it comes with that of its own.
        """
        with self._lock:
            marking, self._marking = self._marking, None
        try:
            if marking is None:
                connection = self._connect()
                if connection is None:
                    return None
                marking = next(_markings), connection
            (version,) = marking[1].execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            if marking is not None:
                marking[1].close()
            raise SQLiteErrorPolicy(self.path, self._config.patience).explained(error) from error
        number, connection = marking
        with self._lock:
            is_kept = self._writer is not None and not isinstance(connection, Unlocked)
            if is_kept and self._marking is None:
                self._marking = marking
                return number, version
        connection.close()
        return number, version

    def _give_back(self, connection: Connection) -> None:
        if isinstance(connection, Unlocked):
            connection.close()
        else:
            super()._give_back(connection)

    def _connect(self) -> sqlite3.Connection | None:
        if not self.path.exists():
            return None
        patience = self._config.patience
        return connect(self.path, patience=patience, synchronous=self._synchronous, reads_only=True)
