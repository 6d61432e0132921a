"""Where the tensors of a convolution lie: its geometry, and the layouts of several tasks' images.

Tasks with weights of their own lie in one of two ways. Beside each other: images ``[B, T*C, H, W]``
and T times as many groups, which suits PyTorch's grouped convolutions. One after another: images
``[T*B, C, H, W]`` and ``Geometry.tasks`` = T, which suits batched matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: all that is neither input nor weight.

    Attributes:
        stride: of the windows.
        padding: zeros at either side.
        dilation: of the kernel.
        groups: of channels.
        channels_last: memory layout of images and weights.
        tasks: T, where images are ``[T*B, C, H, W]`` and weights ``[T*O, C / groups, k, k]``.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    channels_last: bool = False
    tasks: int = 1

    def times(self, tasks: int) -> Geometry:
        """The geometry of as many convolutions beside each other."""
        return replace(self, groups=self.groups * tasks)

    def output_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (x.shape[axis + 2] + 2 * self.padding[axis] - self.span(weight, axis))
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return height, width

    def span(self, weight: Tensor, axis: int) -> int:
        """How many pixels of the input a window covers along an axis."""
        return self.dilation[axis] * (weight.shape[axis + 2] - 1) + 1

    def mirror(self, weight: Tensor) -> Tensor:
        """The weight whose convolution with g is the input gradient, ``[T*C, O, k, k]``.

        Of one group; g is padded as ``mirrored`` says.
        """
        by_task = weight.reshape(self.tasks, -1, *weight.shape[1:])
        return by_task.transpose(1, 2).flip(3, 4).flatten(0, 1)

    def mirrored(self, weight: Tensor) -> Geometry:
        """The geometry of the convolution of g, if this one's stride is 1."""
        height, width = (self.span(weight, axis) - 1 - self.padding[axis] for axis in (0, 1))
        return replace(self, padding=(height, width), stride=(1, 1))

    def arrange(self, x: Tensor) -> Tensor:
        """The same ``[B, C, H, W]`` in the memory layout of the convolution."""
        if not self.channels_last:
            return x.contiguous()
        _, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).contiguous()
        # With one channel, or one pixel, only strides say which of the layouts is meant.
        return rows.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))


def put_beside(images: Tensor, tasks: int) -> Tensor:
    """From ``[T*B, C, H, W]`` to ``[B, T*C, H, W]``, channels-last."""
    rows = images.reshape(tasks, -1, *images.shape[1:]).permute(1, 3, 4, 0, 2)
    return rows.flatten(3).permute(0, 3, 1, 2)


def put_after(images: Tensor, tasks: int) -> Tensor:
    """Back from ``[B, T*C, H, W]`` to ``[T*B, C, H, W]``, channels-last."""
    rows = images.reshape(len(images), tasks, -1, *images.shape[2:]).permute(1, 0, 3, 4, 2)
    return rows.flatten(0, 1).permute(0, 3, 1, 2)
