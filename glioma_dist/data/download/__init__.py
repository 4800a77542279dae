"""Download published data sets."""
