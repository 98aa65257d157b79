"""What is pickled for a worker, and by a worker."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import RemoteError
from shoal.executors._sending import dump_error, load_error


class Exits(Exception):
    """An exception whose own code ends the process that pickles it."""

    def __init__(self, raised: type[BaseException]) -> None:
        super().__init__("no")
        self.raised = raised

    def __reduce__(self) -> Any:
        raise self.raised


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_whose_pickling_exits_is_sent_as_its_stand_in(raised: type[BaseException]):
    arrived = load_error(dump_error(Exits(raised)), "a worker")
    assert isinstance(arrived, RemoteError)
    assert arrived.type == f"{__name__}:Exits"
    assert arrived.text == "no"
