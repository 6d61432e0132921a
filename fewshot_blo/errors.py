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


SINGULAR = (
    "; or, for a head in closed form, its linear system is singular: raise lam (ridge), lower "
    "alpha (label propagation) or compute in float64"
)
"""The other cause of a NaN after inner steps: nobody asks a GPU whether a system is singular."""
