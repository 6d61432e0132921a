"""Errors that a user can act on: each message names the quantity, its value and the remedy."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """Settings that contradict each other or the data."""


class StructuralZeroError(ValueError):
    """A hypergradient that is zero by structure: the outer variable is in neither loss."""


class DivergenceError(FloatingPointError):
    """A loss or gradient that is NaN or infinite."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, corrupt or of another configuration, or cannot be written."""
