"""The one error that a user is meant to read."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names the file, the sample, the value and what to do. Entry points print it
    without a traceback and exit with 2 (see `glioma_dist.runtime.run_command`).
    """
