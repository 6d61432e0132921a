"""Checks that reject networks the kernel cannot run, before any forward pass."""

from __future__ import annotations

import torch
from torch import nn

from fewshot_blo.errors import ConfigurationError


def check_usable(network: nn.Module) -> None:
    """Rejects a network that cannot be run for tasks.

    Raises:
        ConfigurationError: if a module is wrapped (DataParallel) or compiled, a parameter is
            uninitialized (lazy) or complex, or an embedding has sparse gradients.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    for name, module in network.named_modules():
        where = f"'{name}' of the network" if name else "the network"
        kind = type(module).__name__
        if isinstance(module, wrappers):
            raise ConfigurationError(
                f"{where} is a {kind}, which splits the batch itself: pass the wrapped module "
                "(network.module)"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigurationError(
                f"{where} is compiled by torch.jit ({kind}), which hides its layers: pass the "
                "module that it was compiled from"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ConfigurationError(
                f"{where} has sparse gradients, which cannot be stacked over tasks: use "
                f"{kind}(..., sparse=False)"
            )
        if kind == "OptimizedModule":
            raise ConfigurationError(
                f"{where} is compiled by torch.compile: pass the module that it was compiled from "
                "(network._orig_mod)"
            )
    for name, p in (*network.named_parameters(), *network.named_buffers()):
        if nn.parameter.is_lazy(p):
            raise ConfigurationError(
                f"'{name}' of the network is uninitialized: run one batch of images through the "
                "network to initialize its lazy layers"
            )
        if p.is_complex():
            raise ConfigurationError(
                f"'{name}' of the network is {p.dtype}: parameters and buffers must be real; store "
                "real and imaginary parts as two tensors, or use torch.view_as_real"
            )
