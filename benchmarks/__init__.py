"""The cost of shoal, compared with programs written by hand: ``python -m benchmarks``."""
