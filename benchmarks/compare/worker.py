"""The process of one contender: runs its program whenever it is told to, and says what it took.

``python -m benchmarks.compare.worker MODULE CONTENDER PACKAGE WORKLOAD BACKEND ITEMS LIMIT``. A
line on its standard input is one round, and its answer is a line of JSON.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.compare.workloads import WORKLOADS, Job, Part, Program

MISSING = 3
"""The exit code if the contender's library is not installed, or has no program for the work."""


def peak() -> int:
    """Return the most memory that the process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def once(program: Program, workload: str, items: int, limit: int, backend: Any) -> dict[str, float]:
    """Run the program once, in an empty folder, and check its result."""
    # Here, which is on a disk; /tmp may be in memory.
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as folder:
        job = Job(items, limit, Path(folder).absolute(), backend)
        if WORKLOADS[workload].prepares:
            program(job)
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        result = program(job)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if isinstance(result, Part):
            result, wall, cpu = result
        if not WORKLOADS[workload].check(result, job):
            raise SystemExit(f"{workload}: wrong result: {str(result)[:200]}")
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    """Import the contender, warm up, and measure."""
    module, contender, package, workload, backend, items, limit = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    began = time.perf_counter()
    try:
        found = importlib.import_module(module).contenders(backend)
    except ImportError as error:
        print(error, file=sys.stderr)
        raise SystemExit(MISSING) from None
    program = found.get(contender, {}).get(workload)
    if program is None:
        raise SystemExit(MISSING)
    imported = time.perf_counter() - began
    # Small, so that no later import or first use is measured.
    few = max(2, int(limit)) if workload in ("race1000", "memory", "cancel") else 20
    once(program, workload, few, int(limit) if few != 20 else 5, backend)
    gc.collect()
    before = peak()
    version = metadata.version(package) if package else ""
    ready = {"imported": imported, "kib": before, "version": version}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        took = once(program, workload, int(items), int(limit), backend)
        took["kib"] = peak() - before
        print(json.dumps(took), file=answers, flush=True)
    with contextlib.suppress(BrokenPipeError):
        answers.close()


if __name__ == "__main__":
    main()
