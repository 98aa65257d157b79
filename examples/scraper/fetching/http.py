"""Chooses the HTTP library: the only module that imports it.

`httpx2` is a maintained copy of `httpx` under another name, and so is `httpcore2` of `httpcore`.
They are used if `httpx` isn't installed.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING or find_spec("httpx") is not None:
    import httpcore
    import httpx
else:
    import httpcore2 as httpcore
    import httpx2 as httpx

__all__ = ["httpcore", "httpx"]
