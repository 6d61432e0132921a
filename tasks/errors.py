"""``DataError``, which every problem with data raises; commands print it without a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """Data that is missing, incomplete, corrupt or too small for the requested tasks.

    The message names the quantity, its value and the remedy.
    """
