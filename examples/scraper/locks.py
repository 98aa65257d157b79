"""Locks on files: two crawls don't write to one output, nor work on one job.

The operating system holds them, and lets go when a process ends, however it does.
"""

from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: there the claim of the run is all there is
    fcntl = None  # type: ignore[assignment]


class Locked(OSError):
    """Another process, or another crawl of this one, has locked a file."""


def lock(file: IO[Any], path: Path) -> None:
    """Lock an open file until it is closed.

    Raises:
        Locked: It is locked already.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"{path} is in use: another crawl writes to it") from None
    except OSError:  # a file system without locks
        return
