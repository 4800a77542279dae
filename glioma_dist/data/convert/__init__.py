"""From published data sets and annotation exports to shards."""
