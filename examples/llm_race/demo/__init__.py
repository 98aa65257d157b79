"""Models for `--demo`: a server of imitations, and real small models on this machine."""
