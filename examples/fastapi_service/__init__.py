"""A service: a model reviews files concurrently, then a person decides."""
