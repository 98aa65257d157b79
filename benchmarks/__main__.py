"""``python -m benchmarks``: all benchmarks, one after the other, with their defaults."""

from benchmarks import durable, executors, imports, limits, map, race  # noqa: A004 # as its subject

for benchmark in (map, race, limits, durable, executors, imports):
    benchmark.main()
