"""Measurements of this toolkit beside its baselines."""
