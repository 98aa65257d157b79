"""File locks: two crawls never write to one output, and never work on one job.

The operating system holds the locks, and releases them whenever a process ends.
"""

from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: only the claim on the run protects the job there
    fcntl = None  # type: ignore[assignment]


class Locked(OSError):
    """Another process, or another crawl in this one, has locked a file."""


def lock(file: IO[Any], path: Path) -> None:
    """Lock an open file until it is closed.

    Raises:
        Locked: The file is locked already.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"{path} is in use: another crawl writes to it") from None
    except OSError:  # a file system without locks
        return
