"""``python -m benchmarks``: all benchmarks, one after the other, with their defaults."""

from benchmarks import durable, imports, limits, map, race  # noqa: A004 # named like its subject

for benchmark in (map, race, limits, durable, imports):
    benchmark.main()
