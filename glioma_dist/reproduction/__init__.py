"""The article's experiments: as data, as runs of the commands, as results."""
