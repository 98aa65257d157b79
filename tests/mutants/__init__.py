"""Mutants: copies of the source with a defect each, which the tests have to notice.

``python -m tests.mutants`` breaks each invariant in a few ways that were thought out, and runs the
tests that must fail. ``python -m tests.mutants sample`` makes small defects at random places.
"""
