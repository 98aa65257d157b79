"""Runs that an earlier version has stored, and the programs that made them."""
