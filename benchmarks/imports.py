"""Imports: the processor time that a fresh process needs before its program begins.

``python -m benchmarks.imports``. ``import shoal`` imports a name when it is first asked for, so the
row of a program's usual names tells more than that of the bare import. The base is what shoal
stands on. Byte code is compiled in a round that isn't counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec

BASE = "import anyio, asyncio, typing, dataclasses"
STATEMENTS = (
    "import anyio",
    BASE,
    "import shoal",
    "from shoal import ShoalError",
    "from shoal import Application, Graph, Limits, action, fan_out",
    "from shoal import *",
    "import httpx",
)
TIMED = """
import time
began = time.process_time()
{}
print(time.process_time() - began)
"""


def seconds_of(statement: str, cache: str) -> float:
    """Import in a fresh process; return the processor time of the statement alone."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement)],
        env={**kept, "PYTHONPYCACHEPREFIX": cache},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    statements = [one for one in STATEMENTS if "httpx" not in one or find_spec("httpx")]
    seconds: dict[str, list[float]] = {one: [] for one in statements}
    with tempfile.TemporaryDirectory() as cache:
        for counted in range(rounds + 1):
            for statement in statements:
                took = seconds_of(statement, cache)
                if counted:
                    seconds[statement].append(took)
    print(f"Python {platform.python_version()}, median of {rounds} processes each")
    print(f"{'':<64}{'ms':>8}{'min':>8}{'ratio':>8}")
    for statement, values in seconds.items():
        ratio = statistics.median(
            ours / base for ours, base in zip(values, seconds[BASE], strict=True)
        )
        print(
            f"{statement:<64}{statistics.median(values) * 1e3:>8.1f}{min(values) * 1e3:>8.1f}"
            f"{ratio:>8.2f}"
        )


if __name__ == "__main__":
    main()
