"""Formats of a prediction's results, one file each; names.py declares them."""
