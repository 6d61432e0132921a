"""The one exception that data problems raise: a command line prints it without a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """Data that is missing, partial, corrupt or too small for the tasks asked of it.

    The message names what is wrong, its value and the remedy.
    """
