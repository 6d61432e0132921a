"""Families of functions, and regression tasks drawn from them."""

from __future__ import annotations

from fewshot_blo.tasks.families.family import Family
from fewshot_blo.tasks.families.harmonic import Harmonic
from fewshot_blo.tasks.families.linear_mixture import LinearMixture
from fewshot_blo.tasks.families.sampler import FunctionSampler
from fewshot_blo.tasks.families.sinusoid import Sinusoid
from fewshot_blo.tasks.families.sinusoid_or_line import SinusoidOrLine

FAMILIES = (Sinusoid, SinusoidOrLine, Harmonic, LinearMixture)
"""The families of this package."""

__all__ = [
    "FAMILIES",
    "Family",
    "FunctionSampler",
    "Harmonic",
    "LinearMixture",
    "Sinusoid",
    "SinusoidOrLine",
]
