"""``python -m benchmarks``: all of them, one after the other, as they are by default."""

from benchmarks import durable, imports, limits, map, race  # noqa: A004 # as what it measures

for benchmark in (map, race, limits, durable, imports):
    benchmark.main()
