"""Our own executors do what every executor has to."""

from __future__ import annotations

import sys

import pytest

from shoal.executors import Interpreters, Processes, Threads
from shoal.testing import ExecutorConformance

from .fake import Fake


@pytest.mark.anyio
class TestFakeExecutor(ExecutorConformance):
    @pytest.fixture
    def executor(self) -> Fake:
        return Fake()


@pytest.mark.anyio
@pytest.mark.realtime
class TestThreads(ExecutorConformance):
    many = 10

    @pytest.fixture
    def executor(self) -> Threads:
        return Threads(2)


@pytest.mark.anyio
@pytest.mark.realtime
@pytest.mark.slow
class TestProcesses(ExecutorConformance):
    @pytest.fixture
    def executor(self) -> Processes:
        return Processes(2)


@pytest.mark.anyio
@pytest.mark.realtime
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 13), reason="they came with Python 3.13")
class TestInterpreters(ExecutorConformance):
    @pytest.fixture
    def executor(self) -> Interpreters:
        return Interpreters(2, takes="all")
