"""Reading TIFF and PNG files that may be damaged."""
