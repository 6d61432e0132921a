"""Image sizes that a network of patches can take."""

from __future__ import annotations

from fewshot_blo.errors import ConfigurationError


def check_patches(network: str, size: int, patch: int) -> None:
    """Checks that patches of this height and width fill an image.

    Args:
        network: name of the network.
        size: height and width of the images in pixels.
        patch: height and width of a patch in pixels.

    Raises:
        ConfigurationError: if they do not, with the nearest sizes that they fill.
    """
    if size % patch:
        below = size // patch * patch
        near = " or ".join(str(s) for s in (below, below + patch) if s)
        raise ConfigurationError(
            f"size is {size}: {network} takes patches of {patch} x {patch} pixels, so that it must "
            f"be a multiple of {patch}; use {near}"
        )


def cannot_take(network: str, size: int, native: int, error: Exception) -> ConfigurationError:
    """The error that a network cannot be built for images of a size.

    Args:
        network: name of the network.
        size: height and width of the images in pixels.
        native: those of pretraining.
        error: what building it raised.
    """
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigurationError(
        f"{network} cannot be built for images of {size} x {size} pixels ({reason}): choose "
        f"another size, or leave it out for {native}"
    )
