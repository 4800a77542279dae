"""Measurements of this toolkit beside its peers."""
