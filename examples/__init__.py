"""Programs to copy from, each in a package of its own."""
