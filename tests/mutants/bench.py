"""A copy of the source that gets one defect after the other, and the tests that are run with it.

Each run is a fork of a process that has imported everything but shoal, so it starts at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Literal

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "shoal"
PACKAGES = ("_engine", "_limits")
"""The engine's run and its fan-outs, and the limits: where small defects are made."""
PLUGINS = ("anyio.pytest_plugin", "pytest_timeout")
"""The plugins of pytest's that the tests need; others that are installed take long to import."""
LOADED = (
    *PLUGINS,
    *("blockbuster", "cloudpickle", "hypothesis", "msgspec", "psycopg", "trio", "uvloop"),
)
"""Modules that the tests need, and that are slow to import."""

Ending = Literal["killed", "survived", "hung", "unfit"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said about a defect."""

    ending: Ending
    """"killed": a test failed. "hung": they took too long, which a gate notices as well. "unfit":
    no test ran, for instance because the source can't be imported any more."""
    by: str = ""
    """The first test that failed."""

    @property
    def is_noticed(self) -> bool:
        return self.ending in ("killed", "hung")


class Bench:
    """A copy of the source, and a way to run tests with it."""

    def __init__(self) -> None:
        assert "shoal" not in sys.modules, "each fork imports the copy as it is then"
        self._folder = TemporaryDirectory(prefix="shoal-mutants-")
        self._copy = Path(self._folder.name) / "src" / "shoal"
        shutil.copytree(SOURCE, self._copy)
        for name in LOADED:
            with suppress(ImportError):
                import_module(name)

    def close(self) -> None:
        self._folder.cleanup()

    def judge(self, changed: Mapping[str, str], tests: Sequence[str], *, seconds: float) -> Verdict:
        """Run ``tests`` with some files of the copy changed.

        Args:
            changed: The new text of each file, by its path below ``src/shoal``.
            tests: Test ids, or what else pytest takes, below ``tests/``.
            seconds: How long they may take.
        """
        try:
            for name, text in changed.items():
                (self._copy / name).write_text(text)
                self._forget(name)
            return self._run(tests, seconds)
        finally:
            for name in changed:
                shutil.copy2(SOURCE / name, self._copy / name)
                self._forget(name)

    def _forget(self, name: str) -> None:
        """Remove what Python has compiled: it compares times and sizes, and these may be alike."""
        path = self._copy / name
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def _run(self, tests: Sequence[str], seconds: float) -> Verdict:
        told = Path(self._folder.name) / "told"
        told.unlink(missing_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._be_pytest(tests, told)
        ends_at = monotonic() + seconds
        status = 0
        while monotonic() < ends_at:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            sleep(0.02)
        else:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Verdict("hung")
        by = told.read_text() if told.exists() else ""
        match os.waitstatus_to_exitcode(status):
            case 0:
                return Verdict("survived")
            case 1 if by:
                return Verdict("killed", by)
            case code if code < 0:
                return Verdict("killed", f"signal {-code}")
            case _:
                return Verdict("unfit", by)

    def _be_pytest(self, tests: Sequence[str], told: Path) -> None:
        """Run pytest in a fork, and never return."""
        code = 70
        try:
            os.setsid()  # so that processes which the tests have started are killed with it
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            os.chdir(ROOT)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            os.environ["PYTHONPATH"] = str(self._copy.parent)  # for the processes of tests
            sys.path.insert(0, str(self._copy.parent))
            # Not by name: pytest warns of plugins that are imported already.
            plugins = [import_module(name) for name in PLUGINS]
            options = ["-x", "-q", "-pno:cacheprovider", "--tb=no", "--timeout=30"]
            code = int(pytest.main([*options, *tests], plugins=[*plugins, FirstFailure(told)]))
        finally:
            os._exit(code)


class FirstFailure:
    """A plugin that writes down which test failed."""

    def __init__(self, told: Path) -> None:
        self._told = told

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._told.exists():
            self._told.write_text(report.nodeid)
