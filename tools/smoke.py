"""A program for a fresh installation: a map, a race and, if SQLite's codec is there, a resumed run.

It imports shoal and anyio alone, and says what it has tried. `nox -s wheel` runs it.
"""

import importlib.util
import tempfile
from importlib.metadata import version
from pathlib import Path

import shoal
from shoal import Application, Limits, MemoryStore, SQLiteStore, action, fan_out, race


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    """Return the square of a number."""
    return n * n


@action(reads=["n"], writes=["square"])
async def product(n: int) -> int:
    """Fail, as the loser of a race."""
    raise ArithmeticError(n)


def main() -> None:
    """Try what needs no more than is installed."""
    assert shoal.__version__ == version("shoal")
    squares = fan_out(square, over="numbers", item="n", into="squares", limits=Limits(5))
    fastest = race(square, product, into="square", take="square")
    tried = ["map", "race"]
    for backend in ("asyncio", "trio") if importlib.util.find_spec("trio") else ("asyncio",):
        done = Application(squares).run_sync({"numbers": [1, 2, 3]}, backend=backend)
        assert done.state["squares"] == [1, 4, 9]
        assert Application(fastest).run_sync({"n": 3}, backend=backend).state["square"] == 9
        tried.append(backend)
    store = MemoryStore()
    for _ in range(2):
        kept = Application(squares, store=store)
        assert kept.run_sync({"numbers": [2]}, id="r").state["squares"] == [4]
    if importlib.util.find_spec("msgspec"):
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                kept = Application(squares, store=SQLiteStore(Path(folder) / "runs.db"))
                assert kept.run_sync({"numbers": [2]}, id="r").state["squares"] == [4]
        tried.append("SQLite")
    print(f"shoal {shoal.__version__}:", ", ".join(tried))


main()
