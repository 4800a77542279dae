"""The article's experiments: as data, as runs of the entry points, as results."""
