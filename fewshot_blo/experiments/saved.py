"""Settings that come with a saved model: they are plain data, and run no code unasked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fewshot_blo.backbones.encoders import own
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.settings import Config, config_from


def saved_settings(saved: Mapping[str, Any], source: str, trusted: Collection[str]) -> Config:
    """The settings of a saved model, after checking that its network may be built.

    Args:
        saved: the settings as plain data.
        source: name of the file or model, for errors.
        trusted: networks of your own ("module:function") that may be called.

    Raises:
        CheckpointError: if there are no settings, or this version does not know them.
        ConfigurationError: if building the network would call a function that is not trusted.
    """
    if "problem" not in saved:
        raise CheckpointError(
            f"{source} was saved without a configuration (train(..., config=None)): build the "
            "problem yourself, load the checkpoint, restore it and call evaluate"
        )
    try:
        config = config_from(saved)
    except (ConfigurationError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{source} has settings that are unknown to this version "
            f"({' '.join(str(error).split())}): evaluate it with the version that trained it"
        ) from error
    function = config.encoder.settings.get("function", "")
    if config.encoder.kind is own and function not in trusted:
        raise ConfigurationError(
            f"building the network of {source} would call '{function}': if you trust this "
            f"function, allow it (network {function})"
        )
    return config
