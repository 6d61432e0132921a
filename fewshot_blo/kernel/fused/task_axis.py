"""Where vmap puts the task axis of contiguous images."""

from __future__ import annotations

from torch import Tensor


class TaskAxis:
    """The task axis in memory: beside the channels, or the groups of images themselves."""

    def __init__(self, tasks: int, x: Tensor, dim: int | None) -> None:
        self.tasks = tasks
        # Of [1, B, H, W, C] with the task axis put first.
        self.beside = dim is not None and x.movedim(dim, 0).stride(0) < x.movedim(dim, 0).stride(2)

    def images(self, x: Tensor, dim: int | None) -> Tensor:
        """From ``[1, B, H, W, C]`` for each task to ``[G, B, H, W, C]``."""
        x = self._stack(x, dim).squeeze(1)
        return x.permute(1, 2, 3, 0, 4).flatten(3).unsqueeze(0) if self.beside else x

    def vectors(self, x: Tensor, dim: int | None) -> Tensor:
        """From ``[1, C]`` for each task to ``[G, C]``."""
        x = self._stack(x, dim).squeeze(1)
        return x.reshape(1, -1) if self.beside else x

    def restore(self, x: Tensor) -> Tensor:
        """Back from groups of images or vectors, with the task axis in the place ``dim(x)``."""
        return x.reshape(*x.shape[:-1], self.tasks, -1) if self.beside else x.unsqueeze(1)

    def dim(self, x: Tensor) -> int:
        """The place of the task axis in ``restore(x)``."""
        return x.ndim - 1 if self.beside else 0

    def _stack(self, x: Tensor, dim: int | None) -> Tensor:
        return x.expand(self.tasks, *x.shape) if dim is None else x.movedim(dim, 0)


def over_rows(vector: Tensor) -> Tensor:
    """``[G, C]`` against ``[G, B, H, W, C]``."""
    return vector[:, None, None, None, :]
