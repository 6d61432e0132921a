"""The geometry of a convolution and the memory layouts of several tasks' images.

Tasks with their own weights have one of two layouts. Side by side: images ``[B, T*C, H, W]`` and
T times as many groups, which suits PyTorch's grouped convolutions. One after another: images
``[T*B, C, H, W]`` and ``Geometry.tasks`` = T, which suits batched matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Settings of a convolution: all but its input and weight.

    Attributes:
        stride: step of the window, vertical and horizontal.
        padding: number of zeros on each side.
        dilation: spacing of the kernel's taps.
        groups: number of channel groups.
        channels_last: whether images and weights are in channels-last memory.
        tasks: T, where images are ``[T*B, C, H, W]`` and weights ``[T*O, C / groups, k, k]``.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    channels_last: bool = False
    tasks: int = 1

    def times(self, tasks: int) -> Geometry:
        """The geometry of ``tasks`` such convolutions side by side."""
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
        """Number of input pixels that a window spans along an axis."""
        return self.dilation[axis] * (weight.shape[axis + 2] - 1) + 1

    def mirror(self, weight: Tensor) -> Tensor:
        """The weight whose convolution with the output gradient is the input gradient.

        ``[T*C, O, k, k]``, for one group; the convolution has the geometry ``mirrored``.
        """
        by_task = weight.reshape(self.tasks, -1, *weight.shape[1:])
        return by_task.transpose(1, 2).flip(3, 4).flatten(0, 1)

    def mirrored(self, weight: Tensor) -> Geometry:
        """The geometry of that convolution, if the stride is 1."""
        height, width = (self.span(weight, axis) - 1 - self.padding[axis] for axis in (0, 1))
        return replace(self, padding=(height, width), stride=(1, 1))

    def arrange(self, x: Tensor) -> Tensor:
        """The same ``[B, C, H, W]`` in the memory format of the convolution."""
        if not self.channels_last:
            return x.contiguous()
        _, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).contiguous()
        # With one channel or one pixel, only the strides tell the memory formats apart.
        return rows.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))


def put_beside(images: Tensor, tasks: int) -> Tensor:
    """Puts tasks side by side: ``[T*B, C, H, W]`` to ``[B, T*C, H, W]``, channels-last."""
    rows = images.reshape(tasks, -1, *images.shape[1:]).permute(1, 3, 4, 0, 2)
    return rows.flatten(3).permute(0, 3, 1, 2)


def put_after(images: Tensor, tasks: int) -> Tensor:
    """Puts tasks one after another: ``[B, T*C, H, W]`` to ``[T*B, C, H, W]``, channels-last."""
    rows = images.reshape(len(images), tasks, -1, *images.shape[2:]).permute(1, 0, 3, 4, 2)
    return rows.flatten(0, 1).permute(0, 3, 1, 2)
