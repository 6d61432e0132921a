"""Networks rewritten for tasks: with the kernel's layers in place of PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot_blo.kernel.blocks import Block, Blocks
from fewshot_blo.kernel.convolution import convolve
from fewshot_blo.kernel.convolution_algorithms import Geometry
from fewshot_blo.kernel.fused import Then, is_fused
from fewshot_blo.kernel.layers import BatchNorm, Dropout
from fewshot_blo.kernel.plain import is_plain


class Convolution(nn.Conv2d):
    """A 2-D convolution whose derivatives of any order are as fast as its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``x``, ``[B, C, H, W]``."""
        if is_plain():
            return super().forward(x)
        weight, bias = self.weight, self.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return convolve(x, weight, bias, self.geometry)

    @property
    def geometry(self) -> Geometry:
        """All but weight and bias."""
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        pairs = _pair(self.stride), _pair(padding), _pair(self.dilation)
        return Geometry(*pairs, self.groups)


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


class Chain(nn.Sequential):
    """A sequence in which blocks of convolution, batch norm, ReLU and pooling run as one."""

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        layers = list(_flatten(self))
        while layers:
            blocks, tensors = _take_blocks(layers, x)
            x = Blocks(tuple(blocks))(x, tensors).contiguous() if blocks else layers.pop(0)(x)
        return x


def _flatten(chain: Chain) -> Iterator[nn.Module]:
    """The layers of a chain and of the chains in it."""
    for layer in chain:
        if isinstance(layer, Chain) and not _has_hooks(layer):
            yield from _flatten(layer)
        else:
            yield layer


def _take_blocks(layers: list[nn.Module], x: Tensor) -> tuple[list[Block], list[Tensor | None]]:
    """Takes from the front of ``layers`` the blocks that can run as one, and their tensors."""
    blocks: list[Block] = []
    tensors: list[Tensor | None] = []
    if not is_fused(x):
        return blocks, tensors
    while len(layers) > 1:
        convolution, norm = layers[:2]
        if not (isinstance(convolution, Convolution) and isinstance(norm, BatchNorm)):
            break
        statistics = norm.statistics()
        if isinstance(statistics, Tensor) or _has_hooks(convolution) or _has_hooks(norm):
            break
        del layers[:2]
        running = isinstance(statistics, str)
        first = statistics if isinstance(statistics, int) else None
        blocks.append(Block(convolution.geometry, norm.eps, _take_then(layers), running, first))
        own = *norm.scale_and_shift(), norm.running_mean, norm.running_var
        tensors += [convolution.weight, convolution.bias, *own]
    return blocks, tensors


def _take_then(layers: list[nn.Module]) -> Then:
    """Takes from the front of ``layers`` those that can be joined with a batch norm."""
    slope, pool = 1.0, 1
    if layers and type(layers[0]) in (nn.ReLU, nn.LeakyReLU) and not _has_hooks(layers[0]):
        relu = layers[0]
        found = float(relu.negative_slope) if isinstance(relu, nn.LeakyReLU) else 0.0
        if found >= 0:
            slope = found
            layers.pop(0)
            if layers and _halves(layers[0]):
                pool = 2
                layers.pop(0)
    return Then(slope, pool)


def _halves(layer: nn.Module) -> bool:
    """Whether the layer is max-pooling over 2×2 windows side by side, and nothing more."""
    if type(layer) is not nn.MaxPool2d or _has_hooks(layer) or layer.return_indices:
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    pairs = tuple(size if isinstance(size, tuple) else (size, size) for size in sizes)
    return pairs == ((2, 2), (2, 2), (0, 0), (1, 1)) and not layer.ceil_mode


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def for_tasks(network: nn.Module) -> nn.Module:
    """A copy of a network with its layers replaced by those above.

    Parameters and running statistics are carried over under the same names.
    """
    return _convert(copy.deepcopy(network), {})


def _convert(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    done[module] = module
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
        done[module] = _convert_norm(module).train(module.training)
    elif isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        dropout = Dropout(module.p, channels=not isinstance(module, nn.Dropout))
        done[module] = dropout.train(module.training)
    elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.padding != "same":
        module.__class__ = Convolution
    elif type(module) is nn.Sequential:
        module.__class__ = Chain
    # Not named_children, which leaves out a layer's second name.
    for name, child in module._modules.items():
        if child is not None:
            setattr(module, name, _convert(child, done))
    return done[module]


def _convert_norm(
    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm,
) -> BatchNorm:
    norm = BatchNorm(module.num_features, eps=module.eps, affine=module.affine)
    if module.affine:
        norm = norm.to(module.weight)
        norm.weight, norm.bias = module.weight, module.bias
    if module.running_mean is not None and module.running_var is not None:
        norm.running_mean, norm.running_var = module.running_mean, module.running_var
    return norm
