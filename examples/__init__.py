"""Programs to copy from, each in its own package."""
