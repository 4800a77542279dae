"""The proof run: what a ten-minute run on a GPU shows, check by check (`glioma-dist bench gpu`)."""
