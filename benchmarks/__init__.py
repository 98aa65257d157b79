"""What shoal costs, beside what one would have written by hand: ``python -m benchmarks``."""
