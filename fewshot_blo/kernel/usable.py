"""Networks that the kernel cannot run, told when they are handed over."""

from __future__ import annotations

import torch
from torch import nn

from fewshot_blo.errors import ConfigurationError


def check_usable(network: nn.Module) -> None:
    """Raises for what is known before a first forward pass.

    Raises:
        ConfigurationError: if the network or a part of it is wrapped or compiled, has not got all
            its parameters yet, or has complex ones or sparse gradients.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    for name, module in network.named_modules():
        where = f"'{name}' of the network" if name else "the network"
        kind = type(module).__name__
        if isinstance(module, wrappers):
            raise ConfigurationError(
                f"{where} is a {kind}, which shares the images out itself: pass the module in it "
                "(network.module)"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigurationError(
                f"{where} is compiled by torch.jit ({kind}), and its layers cannot be seen: pass "
                "the module that it was made from"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ConfigurationError(
                f"{where} has sparse gradients, which cannot be stacked over tasks: use "
                f"{kind}(..., sparse=False)"
            )
        if kind == "OptimizedModule":
            raise ConfigurationError(
                f"{where} is compiled by torch.compile: pass the module that it was made from "
                "(network._orig_mod)"
            )
    for name, p in (*network.named_parameters(), *network.named_buffers()):
        if nn.parameter.is_lazy(p):
            raise ConfigurationError(
                f"'{name}' of the network has no shape yet: run a batch of images through the "
                "network once, so that its lazy layers get their parameters"
            )
        if p.is_complex():
            raise ConfigurationError(
                f"'{name}' of the network is {p.dtype}: parameters and buffers must be real; keep "
                "real and imaginary part as two, or use torch.view_as_real"
            )
