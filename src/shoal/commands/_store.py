"""Open stores that are named on a command line, or by an environment variable."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.stores import Store

STORE = "the file of an SQLiteStore, or the postgresql:// URL of a PostgresStore"
"""The names of stores, for help texts and messages."""
VARIABLE = "SHOAL_STORE"
"""The environment variable with the name of the store that commands use by default."""


class Refused(Exception):
    """A command can't be executed. The message says why, and what to do."""


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a store; ``given_store`` opens the one that was named."""
    group = parser.add_argument_group(
        "the store", f"by default the one that the environment variable {VARIABLE} names: {STORE}"
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument("--db", metavar="FILE", help="the file of an SQLiteStore")
    which.add_argument("--postgres", metavar="URL", help="the URL of a PostgresStore")
    group.add_argument(
        "--schema", metavar="NAME", help="the schema of a PostgresStore, if it isn't the default"
    )


def given_store(given: argparse.Namespace, *, may_be_new: bool = False) -> Store:
    """Return the store that the command line or the environment names; see ``open_store``."""
    return open_store(_given_name(given), given.schema, may_be_new=may_be_new)


def shown_store(given: argparse.Namespace) -> str:
    """Return the name of the store for a message, without the password that may be in it."""
    return re.sub(r"://[^@/]*@", "://", _given_name(given))


def _given_name(given: argparse.Namespace) -> str:
    if given.db is not None:
        name: str = given.db
        if "://" in name:
            msg = "--db takes a file: give the URL of a PostgresStore with --postgres"
            raise Refused(msg)
        return name
    if given.postgres is not None:
        name = given.postgres
        if not name.startswith(_POSTGRES):
            msg = "--postgres takes a postgresql:// URL: give the file of an SQLiteStore with --db"
            raise Refused(msg)
        return name
    name = os.environ.get(VARIABLE, "")
    if not name:
        msg = f"which store? Give --db FILE or --postgres URL, or set {VARIABLE} to one of them"
        raise Refused(msg)
    return name


_POSTGRES = ("postgresql://", "postgres://")


def open_store(name: str, schema: str | None = None, *, may_be_new: bool = False) -> Store:
    """Return the store of that name. Nothing is opened or created yet.

    Args:
        name: The path of a file, or a URL.
        schema: The schema of a PostgresStore, if it isn't the default.
        may_be_new: Whether a file may be missing or empty, if its folder exists.

    Raises:
        Refused: There is no such store, or a package that it needs is not installed.
    """
    if name.startswith(_POSTGRES):
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
    if may_be_new and path.parent.is_dir() and (not path.exists() or path.is_file()):
        return _made("SQLiteStore", "sqlite", name)
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
