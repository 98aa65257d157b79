"""Compares shoal with loops by hand and other libraries: ``python -m benchmarks.compare``."""
