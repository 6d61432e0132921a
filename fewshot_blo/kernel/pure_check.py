"""Checks that a forward pass is a pure function of its input and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError


def check_pure(module: nn.Module, run: Callable[[], Tensor]) -> None:
    """Rejects a network that gives different outputs for the same input and parameters.

    Args:
        module: the network.
        run: calls it, always with the same input and parameters.

    Raises:
        ConfigurationError: names the first module that is not pure, and the cause.
    """
    outputs: list[dict[str, Tensor]] = []
    kinds = {name: type(m).__name__ for name, m in module.named_modules()}
    before = torch.get_rng_state()
    for _ in range(2):
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), _outputs_seen(module, seen):
            seen[""] = run()
        outputs.append(seen)
    first, second = outputs
    if _same(first[""], second[""]):
        return
    name = next(n for n, x in first.items() if n not in second or not _same(x, second[n]))
    what = (
        "keeps a state that changes from one forward pass to the next"
        if torch.equal(before, torch.get_rng_state())
        else "draws random numbers from the global generator with functions other than PyTorch's "
        "dropouts, rand, randn, bernoulli, uniform_, normal_ and exponential_"
    )
    where = f"'{name}' ({kinds[name]})" if name else f"the network ({kinds['']})"
    raise ConfigurationError(
        f"{where} gives different outputs for the same input and parameters: it {what}. The kernel "
        "runs a forward pass any number of times, so it must be a pure function; set prove to "
        "False to skip this check"
    )


@contextmanager
def _outputs_seen(module: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    """Records the first output of each submodule, in the order in which they finish."""
    handles = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if isinstance(output, Tensor) and name not in seen:
                seen[name] = output.detach().clone()

        return hook

    try:
        for name, submodule in module.named_modules():
            if name:
                handles.append(submodule.register_forward_hook(note(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
