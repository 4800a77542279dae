"""Images larger than the memory: strips that are exact, tiles beyond, files in place of arrays."""
