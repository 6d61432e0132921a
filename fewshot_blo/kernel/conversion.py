"""Converts a network for the kernel: a copy in which standard layers have a faster forward.

Only a layer whose class is exactly one of PyTorch's own is converted. It gets a subclass with
another ``forward`` and keeps its attributes, hooks and name. All other layers are unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot_blo.kernel.hooks import has_hooks
from fewshot_blo.kernel.layers import StepwiseBatchNorm, TorchBatchNorm, norm_statistics
from fewshot_blo.kernel.plain import is_plain
from fewshot_blo.kernel.precision import is_autocast
from fewshot_blo.kernel.stacked.blocks import Block, Blocks
from fewshot_blo.kernel.stacked.convolution import convolve
from fewshot_blo.kernel.stacked.convolution_algorithms import Geometry
from fewshot_blo.kernel.stacked.fused import Then, is_fused
from fewshot_blo.kernel.usable import check_usable


class Conv2d(nn.Conv2d):
    """A 2-D convolution whose derivatives of any order run at the speed of its forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolves ``[B, C, H, W]``."""
        if is_plain() or input.ndim != 4:
            return super().forward(input)
        x, weight, bias = input, self.weight, self.bias
        if is_autocast(x.device):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch._C.DisableTorchFunction():
            return convolve(x, weight, bias, self.geometry)

    @property
    def geometry(self) -> Geometry:
        """Stride, padding, dilation and groups."""
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        pairs = _pair(self.stride), _pair(padding), _pair(self.dilation)
        return Geometry(*pairs, self.groups)


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


class Sequential(nn.Sequential):
    """A sequence that runs blocks of convolution, batch norm, ReLU and pooling fused."""

    def forward(self, input: Tensor) -> Tensor:
        """The last layer's output."""
        x, layers = input, list(_flatten(self))
        while layers:
            blocks, tensors = _take_blocks(layers, x)
            if blocks:
                with torch._C.DisableTorchFunction():
                    x = Blocks(tuple(blocks))(x, tensors).contiguous()
            else:
                x = layers.pop(0)(x)
        return x


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm with each task's own statistics, not synchronized across processes."""

    forward = TorchBatchNorm.forward


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.Sequential: Sequential,
    nn.SyncBatchNorm: SyncBatchNorm,
}
_NORMS = (nn.BatchNorm2d, StepwiseBatchNorm)


def _flatten(chain: Sequential) -> Iterator[nn.Module]:
    """The layers of a sequence, with nested sequences flattened."""
    for layer in chain:
        if type(layer) is Sequential and not has_hooks(layer):
            yield from _flatten(layer)
        else:
            yield layer


def _take_blocks(layers: list[nn.Module], x: Tensor) -> tuple[list[Block], list[Tensor | None]]:
    """Removes the leading layers that can run fused; returns their blocks and tensors."""
    blocks: list[Block] = []
    tensors: list[Tensor | None] = []
    if not isinstance(x, Tensor) or not is_fused(x):
        return blocks, tensors
    while len(layers) > 1:
        convolution, norm = layers[:2]
        if type(convolution) is not Conv2d or type(norm) not in _NORMS:
            break
        assert isinstance(norm, TorchBatchNorm)
        statistics = norm_statistics(norm.training)
        if isinstance(statistics, Tensor) or has_hooks(convolution) or has_hooks(norm):
            break
        del layers[:2]
        running = isinstance(statistics, str)
        first = statistics if isinstance(statistics, int) else None
        blocks.append(Block(convolution.geometry, norm.eps, _take_then(layers), running, first))
        own = *_scale_and_shift(norm), norm.running_mean, norm.running_var
        tensors += [convolution.weight, convolution.bias, *own]
    return blocks, tensors


def _scale_and_shift(norm: TorchBatchNorm) -> tuple[Tensor, Tensor]:
    """γ and β of the current forward pass, ``[C]`` each."""
    if isinstance(norm, StepwiseBatchNorm):
        return norm.scale_and_shift()
    if norm.affine:
        return norm.weight, norm.bias
    assert norm.running_mean is not None
    return torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)


def _take_then(layers: list[nn.Module]) -> Then:
    """Removes the leading layers that can be fused with the batch norm before them."""
    slope, pool = 1.0, 1
    if layers and type(layers[0]) in (nn.ReLU, nn.LeakyReLU) and not has_hooks(layers[0]):
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
    """Whether the layer is plain 2×2 max-pooling with stride 2."""
    if type(layer) is not nn.MaxPool2d or has_hooks(layer) or layer.return_indices:
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    pairs = tuple(size if isinstance(size, tuple) else (size, size) for size in sizes)
    return pairs == ((2, 2), (2, 2), (0, 0), (1, 1)) and not layer.ceil_mode


def for_tasks(network: nn.Module) -> nn.Module:
    """A copy of a network with faster layers, ready for ``TaskForward``.

    Parameters and running statistics keep their names. Batch norms no longer count batches, and all
    of them have running statistics, which ``estimate_statistics`` sets.

    Raises:
        ConfigurationError: as ``check_usable``.
    """
    check_usable(network)
    converted = copy_of(network)
    for module in converted.modules():
        if _is_covered(module):
            module.__class__ = _FASTER[type(module)]
        if type(module) in (*_BATCH_NORMS, StepwiseBatchNorm):
            assert isinstance(module, TorchBatchNorm)
            _prepare_norm(module)
    return converted


def _is_covered(layer: nn.Module) -> bool:
    """Whether there is a faster forward for a layer with these settings."""
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and layer.padding != "same"
    return type(layer) in _FASTER


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncBatchNorm)


def _prepare_norm(norm: TorchBatchNorm) -> None:
    norm._buffers["num_batches_tracked"] = None
    if norm.running_mean is None:
        norm.track_running_stats = True
        example = next(norm.parameters(), torch.zeros(()))
        norm.running_mean = example.new_zeros(norm.num_features)
        norm.running_var = example.new_ones(norm.num_features)


def unconvert(network: nn.Module, name: str) -> bool:
    """Gives a layer PyTorch's own class back; returns whether that changed anything."""
    layer = network.get_submodule(name)
    own = next((before for before, after in _FASTER.items() if type(layer) is after), None)
    if own is None or own is nn.SyncBatchNorm:
        return False
    layer.__class__ = own
    return True


def converted_layers(network: nn.Module) -> dict[str, str]:
    """Class names of the converted layers, by the layers' names."""
    return {
        name: type(layer).__name__
        for name, layer in network.named_modules()
        if type(layer) in _FASTER.values()
    }


def copy_of(network: nn.Module) -> nn.Module:
    """A deep copy, also of a network with non-leaf tensors as attributes.

    ``copy.deepcopy`` alone rejects these, which old-style ``weight_norm`` creates.
    """
    results: dict[int, object] = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(network, results)
