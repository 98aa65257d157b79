"""A service that has files reviewed, side by side, and a person decide what becomes of it."""
