"""The demonstration: drawn data, and the way from it to scores and masks."""
