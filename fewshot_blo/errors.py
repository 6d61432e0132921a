"""Errors that a user can act on: each message names the quantity, its value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class ConfigurationError(ValueError):
    """Settings that are invalid, or contradict each other or the data."""


class StructuralZeroError(ValueError):
    """A hypergradient that is structurally zero: neither loss depends on the outer variable."""


class NotSolvedError(RuntimeError):
    """A bilevel problem was to be solved, and is not.

    Attributes:
        solution: where it was left, a ``Solution``.
    """

    def __init__(self, message: str, solution: Any) -> None:
        super().__init__(message)
        self.solution = solution


class NotSolvedWarning(UserWarning):
    """The variables that are returned are not those of a solved problem."""


class DivergenceError(FloatingPointError):
    """A loss or gradient that is NaN or infinite."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, corrupt, of another configuration, or not writable."""


class ProcessError(RuntimeError):
    """Another process of the same run has failed, or contact with it was lost.

    Attributes:
        is_told: whether that process has an error of its own to report.
    """

    def __init__(self, message: str, *, is_told: bool = False) -> None:
        super().__init__(message)
        self.is_told = is_told


SINGULAR = (
    "; or, for a head in closed form, its linear system is singular: raise lam (ridge), lower "
    "alpha (label propagation) or compute in float64"
)
"""Another cause of a NaN after inner steps: checking for singularity would need a host sync."""


def nearest(name: object, names: Sequence[str]) -> str:
    """`` (did you mean ...?)`` with the most similar of the names; empty if none is similar."""
    by_small = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), list(by_small), n=1, cutoff=0.6)
    return f" (did you mean {by_small[close[0]]}?)" if close else ""


def pip_install(requirement: str) -> str:
    """The command that installs a library, as errors name it.

    Args:
        requirement: a library, as ``transformers``, or an extra of this package, as ``.[onnx]``.
            The package is on no index, so that its extras are installed from a checkout.
    """
    place = " in a checkout of fewshot_blo" if requirement.startswith(".") else ""
    return f"pip install '{requirement}'{place}"


@contextmanager
def installed_by(requirement: str) -> Iterator[None]:
    """Inside, importing a missing optional library raises an error that says how to install it.

    Args:
        requirement: requirement that provides it, as for ``pip_install``.

    Raises:
        ConfigurationError: if a library is missing, with the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed: {pip_install(requirement)}"
        ) from error
