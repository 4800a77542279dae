"""A local page in the browser: drop an image, see its cells."""
