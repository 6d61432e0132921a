"""Loggers by name, for settings, recipes and the command line."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import get_protocol_members

from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.records.loggers import CSV, Logger, MLflow, WeightsAndBiases

LOGGERS: tuple[Callable[..., Logger], ...] = (CSV, WeightsAndBiases, MLflow)
"""The loggers of this package, which are known by the names of their classes."""

Chosen = str | dict[str, Any]
"""A name, or a mapping of ``name`` and settings. A name is that of a class of ``LOGGERS``, or
``module:Name`` of one's own."""


def check_names(chosen: Sequence[Chosen]) -> None:
    """Checks names and names of settings, without the packages and modules that they need.

    Raises:
        ConfigurationError: if one is unknown.
    """
    for own in chosen:
        name, settings = _parted(own)
        if ":" in name:
            continue
        known = list(inspect.signature(_kind(name)).parameters)
        for setting in settings:
            if setting not in known:
                raise ConfigurationError(
                    f"loggers: {name} has no setting '{setting}'{nearest(setting, known)}; it has "
                    f"{', '.join(known)}"
                )


def built(chosen: Sequence[Chosen]) -> tuple[Logger, ...]:
    """The loggers.

    Raises:
        ConfigurationError: if one is unknown, its package is missing or a setting does not fit.
    """
    check_names(chosen)
    return tuple(_built(*_parted(own)) for own in chosen)


def _built(name: str, settings: Mapping[str, Any]) -> Logger:
    if ":" not in name:
        return _kind(name)(**settings)
    module, _, function = name.partition(":")
    try:
        logger: Logger = getattr(importlib.import_module(module), function)(**settings)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the logger '{name}' cannot be created ({error}): use {_names()}, or module:Name of a "
            "class in a file that Python finds (its folder is in PYTHONPATH)"
        ) from error
    lacks = sorted(m for m in get_protocol_members(Logger) if not hasattr(logger, m))
    if lacks:
        raise ConfigurationError(
            f"the logger '{name}' is a {type(logger).__name__} without {', '.join(lacks)}: define "
            "start, write and close"
        )
    return logger


def _parted(own: Chosen) -> tuple[str, dict[str, Any]]:
    """Name and settings."""
    if isinstance(own, str):
        return own, {}
    name, settings = own.get("name"), {n: x for n, x in own.items() if n != "name"}
    if not isinstance(name, str):
        raise ConfigurationError(
            f"loggers: {own} has no name: write {{name: CSV, file: log.csv}} for a logger with "
            "settings"
        )
    return name, settings


def _kind(name: str) -> Callable[..., Logger]:
    by_name = {kind.__name__: kind for kind in LOGGERS}
    if name not in by_name:
        raise ConfigurationError(
            f"loggers has '{name}': there is no such logger{nearest(name, list(by_name))}; use "
            f"{_names()}, or module:Name of your own"
        )
    return by_name[name]


def _names() -> str:
    return ", ".join(kind.__name__ for kind in LOGGERS)
