"""The settings that are usually searched, and ranges around a recipe's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.tuning.sites import Site
from fewshot_blo.experiments.values import in_words

# By the last part of the name, in the problem, the strategy and the adaptation.
_SEARCHED = {
    *("step_size", "steps", "dual_step_size", "dual_steps", "value_steps", "proximal_step_size"),
    *("rho", "lam", "prox", "damping", "gamma", "sigma", "scale", "c", "eta"),
}
_ROOTS = ("problem", "strategy", "adaptation")
_OF_TRAINING = ("train.learning_rate", "train.weight_decay")


def usual_names(sites: Mapping[str, Site]) -> list[str]:
    """Settings of the recipe that are searched where none are named.

    Learning rate and weight decay, numbers and sizes of inner steps, weights of penalties,
    regularisation and damping, scales of heads: those that are positive and have an effect.
    """
    return [name for name, site in sites.items() if _is_usual(site) and not _is_idle(name, sites)]


def _is_usual(site: Site) -> bool:
    root, leaf = site.name.partition(".")[0], site.name.rpartition(".")[2]
    known = site.name in _OF_TRAINING or (root in _ROOTS and leaf in _SEARCHED)
    number = isinstance(site.value, int | float) and not isinstance(site.value, bool)
    return bool(known and number and site.numeric and 0 < site.value < float("inf"))


def _is_idle(name: str, sites: Mapping[str, Site]) -> bool:
    """Whether no step is taken that a setting could change."""
    trained = "train" if name.startswith("strategy.") else ""
    parts = name.split(".")
    places = [trained, *(".".join(parts[:n]) for n in range(1, len(parts)))]
    return any(f"{place}.steps" in sites and sites[f"{place}.steps"].value == 0 for place in places)


def usual_values(site: Site) -> dict[str, Any]:
    """Range or choices of a setting around the recipe's value, as arguments of ``Axis``.

    A tenth to ten times a positive number, on a logarithmic scale; 1 to twice a whole number, at
    least to 10; the whole range where it is bounded on both sides; all choices.

    Raises:
        ConfigurationError: if the value has no range around it.
    """
    if site.is_component:
        raise ConfigurationError(
            f"search {site.name}: name the choices, as {site.name}={','.join(site.choices[:2])}"
        )
    if site.choices:
        return {"choices": site.choices}
    value, limits = site.value, site.limits
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not site.numeric or not number or not 0 < value < float("inf"):
        raise ConfigurationError(
            f"search {site.name}: the recipe has {in_words(value)}, which has no range around it; "
            f"give one, as {site.name}=LOW..HIGH"
        )
    if site.whole:
        low, high = max(1, limits.low), min(max(10, 2 * value), limits.high)
        return {"low": int(low), "high": int(high), "whole": True}
    if limits.low > -float("inf") and limits.high < float("inf"):
        margin = 0.01 * (limits.high - limits.low)
        low = limits.low + margin * limits.above
        high = limits.high - margin * limits.below
        return {"low": min(low, value), "high": max(high, value)}
    low, high = (float(f"{x:.6g}") for x in (value / 10, value * 10))
    return {"low": max(low, limits.low), "high": min(high, limits.high), "log": True}
