"""Masks for new images."""
