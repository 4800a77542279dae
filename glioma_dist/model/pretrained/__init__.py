"""Weights from elsewhere: found, read, and brought to the names used here."""
