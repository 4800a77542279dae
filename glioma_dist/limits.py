"""Limits that several packages share. Limits of a single module are in that module."""

MAX_PIXELS = 2**28
"""Of an image, and of a size that can be asked for: 16,384 x 16,384, fifty times the article's largest image."""
