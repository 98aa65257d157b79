"""Open stores that are named on a command line."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.stores import Store

STORE = "the file of an SQLiteStore, or the postgresql:// URL of a PostgresStore"
"""The names of stores, for help texts and messages."""


class Refused(Exception):
    """A command can't be executed. The message says why, and what to do."""


def open_store(name: str, schema: str | None = None) -> Store:
    """Return the store of that name. Nothing is opened or created yet.

    Args:
        name: The path of a file, or a URL.
        schema: The schema of a PostgresStore, if it isn't the default.

    Raises:
        Refused: There is no such store, or a package that it needs is not installed.
    """
    if name.startswith(("postgresql://", "postgres://")):
        more = {} if schema is None else {"schema": schema}
        return _made("PostgresStore", "postgres", name, **more)
    if schema is not None:
        msg = f"--schema is for a PostgresStore, but {name} is a file"
        raise Refused(msg)
    if "://" in name:
        scheme = name.partition(":")[0]
        msg = f"no store has a {scheme}:// URL: give {STORE}"
        raise Refused(msg)
    path = Path(name)
    if not path.exists():
        msg = f"there is no file {name}: give {STORE}"
        raise Refused(msg)
    if not path.is_file():
        msg = f"{name} is not a file: give {STORE}"
        raise Refused(msg)
    if not path.stat().st_size:
        msg = f"{name} is empty: no run was ever saved in it"
        raise Refused(msg)
    return _made("SQLiteStore", "sqlite", name)


def _made(kind: str, extra: str, name: str, **more: str) -> Store:
    try:
        make = getattr(importlib.import_module("shoal"), kind, None)
        if make is None:
            msg = f"this version of shoal has no {kind}"
            raise Refused(msg)
        return make(name, **more)
    except ImportError as error:
        msg = str(error)
        if "pip install" not in msg:
            msg = (
                f"{kind} needs a package that isn't installed ({msg}): pip install 'shoal[{extra}]'"
            )
        raise Refused(msg) from error
