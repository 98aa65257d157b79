"""Which HTTP library is used: the one place that imports it.

`httpx2` is a maintained copy of `httpx` under another name, and `httpcore2` of what is below it;
where `httpx` isn't installed, they do as well.
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
