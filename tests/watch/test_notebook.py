"""Progress in a notebook, with a real kernel."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="needs ipykernel")

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.services,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the client and the kernel
]

CELLS = (
    """
    import asyncio
    import anyio
    from shoal import *

    @action(reads=["item"], writes=["done"])
    async def work(item: int, context: Context) -> int:
        context.note(f"at <b>{item}")
        await anyio.sleep(0.1)
        if item == 13:
            raise ValueError("unlucky")
        return item

    app = Application(
        fan_out(work, over="items", item="item", into="all", name="all", limits=Limits(4)), name="x"
    )
    """,
    """
    result = await app.run({"items": range(12)}, progress=True)
    print(result.status)
    """,
    """
    async with Runtime(progress=True) as runtime:
        for run_id in ("one", "two"):
            await app.start({"items": range(12)}, id=run_id, runtime=runtime)
    """,
    """
    await app.run({"items": [13, 14]}, progress=True)
    """,
    """
    task = asyncio.create_task(app.run({"items": range(12)}, progress=True))
    await asyncio.sleep(0)
    print(1 + 1)
    """,
    """
    print((await task).status)
    """,
)


@pytest.mark.timeout(120)
def test_each_cell_shows_the_progress_of_its_runs_in_one_output():
    cells = ["\n".join(line[4:] for line in cell.splitlines()).strip() for cell in CELLS]
    notebooks: Any = importlib.import_module("nbformat.v4")
    book = notebooks.new_notebook(cells=[notebooks.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3", allow_errors=True).execute()
    _, one, several, failing, begun, ended = [cell.outputs for cell in book.cells]

    display, printed = one
    assert printed.text == "succeeded\n"
    assert display.data["text/plain"].splitlines()[0].startswith(f"all {'█' * 24} 12/12")
    assert display.data["text/html"].startswith("<pre")

    (display,) = several
    assert [line for line in display.data["text/plain"].splitlines() if "12/12" in line] == [
        line for line in display.data["text/plain"].splitlines() if line.startswith("all ")
    ]
    assert "x one" in display.data["text/plain"]
    assert "x two" in display.data["text/plain"]

    display, *rest = failing
    assert "ended without success" in display.data["text/plain"]
    assert "running" not in display.data["text/plain"]
    assert "unlucky" in str(rest)
    assert [one.text for one in begun if one.output_type == "stream"] == ["2\n"]
    assert [one.text for one in ended if one.output_type == "stream"] == ["succeeded\n"]
