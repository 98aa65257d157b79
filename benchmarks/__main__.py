"""``python -m benchmarks``."""

from benchmarks.map import main

main()
