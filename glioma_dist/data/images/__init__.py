"""Reading TIFF, PNG and JPEG files that may be damaged."""
